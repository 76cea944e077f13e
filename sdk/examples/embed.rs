//! A whole agent in Rust: logs, knows where it stands and obeys, through one type.
//!
//! `OTONIX_API_KEY=… cargo run -p otonix-sdk --example embed -- --agent-id …`
use clap::Parser;
use otonix_sdk::agent::{Agent, AgentConfig, Secret};
use otonix_sdk::api::actions::LogAction;
use otonix_sdk::api::events::{CommandResult, EventBody};
use otonix_sdk::ids::AgentId;

#[derive(Parser)]
struct Args {
    #[arg(long, default_value = "http://127.0.0.1:8402")]
    server: String,
    #[arg(long, env = "OTONIX_API_KEY", hide_env_values = true)]
    api_key: String,
    #[arg(long)]
    agent_id: AgentId,
    #[arg(long, default_value = ".otonix-agent")]
    state_dir: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse();
    let config = AgentConfig::new(args.server, Secret::new(args.api_key), args.agent_id, args.state_dir);
    let agent = Agent::start(config).await?;
    let mut commands = agent.take_commands().ok_or("taken before")?;
    let mut standing = agent.standing_changes();
    let action = LogAction {
        action: "woke up".to_owned(),
        category: "system".to_owned(),
        details: None,
        status: None,
        autonomous: None,
    };
    // On disk when this returns; at the server once, whatever happens in between.
    eprintln!("recorded {}", agent.log_action(action, None).await?);
    loop {
        tokio::select! {
            Ok(()) = standing.changed() => {
                let now = *standing.borrow_and_update();
                eprintln!("{} with {} USDC", now.survival_tier, now.credits);
            }
            Some(command) = commands.recv() => {
                let detail = Some(format!("{} is not for this agent", command.kind));
                let result = CommandResult { command_id: command.id, ok: false, detail };
                agent.record(EventBody::CommandResult(result)).await?;
            }
            _ = tokio::signal::ctrl_c() => break,
        }
    }
    agent.shutdown().await;
    Ok(())
}
