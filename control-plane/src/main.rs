//! `otonix-control-plane`: arguments, configuration, log, and then the command.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use otonix_control_plane::config::{Cli, Command, LogFormat, Settings};
use otonix_control_plane::{doctor, serve};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // Before anything else: rustls needs to know its one provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // What any command writes is for nobody else.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let cli = Cli::read();
    let command = cli.command.unwrap_or(Command::Serve);
    let outcome = cli.options.settings().and_then(|settings| {
        log(&settings)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(run(command, settings))
    });
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("otonix-control-plane: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn log(settings: &Settings) -> anyhow::Result<()> {
    // The scheduler tells of its own making at every start.
    let filter = EnvFilter::try_new(format!("tokio_cron_scheduler=warn,{}", settings.log))?;
    let terminal = std::io::stderr().is_terminal();
    let format = settings.log_format.unwrap_or(if terminal { LogFormat::Human } else { LogFormat::Json });
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal);
    match format {
        LogFormat::Human => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "what a command answers")]
async fn run(command: Command, settings: Settings) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve => serve::serve(settings).await?,
        Command::Migrate => match serve::migrate_only(&settings).await?.as_slice() {
            [] => println!("the database is up to date"),
            applied => println!("applied {}", applied.join(", ")),
        },
        Command::CheckConfig => println!("{}", doctor::summary(&settings)?),
        Command::Doctor => return doctor::run(&settings).await,
        Command::Audit => {
            let (books, chain) = serve::books(&settings).await?;
            println!("agents {} USDC", books.agents);
            for (name, balance) in &books.accounts {
                println!("{name} {balance} USDC");
            }
            println!("sum {} USDC", books.sum());
            let mut differences = books.differences();
            if let Some(chain) = &chain {
                for (kind, (count, amount)) in &chain.by_kind {
                    println!("on chain: {kind} {amount} USDC in {count} transfers");
                }
                let (count, amount) = chain.waiting;
                println!("on chain: waiting {amount} USDC in {count} transfers");
                differences.extend(chain.differences.iter().cloned());
            }
            for difference in &differences {
                println!("DIFFERENCE: {difference}");
            }
            if !differences.is_empty() {
                return Ok(ExitCode::FAILURE);
            }
            println!("the books balance");
        }
    }
    Ok(ExitCode::SUCCESS)
}
