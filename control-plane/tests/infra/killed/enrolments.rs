//! A machine that enrols: the program is killed at the commit and at any moment around it, and the machine asks again.

use std::time::Duration;

use alloy::signers::SignerSync as _;
use alloy::signers::local::PrivateKeySigner;
use chrono::{TimeDelta, Utc};
use serde_json::{Value, json};

use super::{At, Scene};
use crate::support::{Agent, Call, Key, Server, Store, on_each_store};

on_each_store!(killed_anywhere_a_machine_enrols_as_one_agent_with_a_key_that_is_good);

/// Kills at moments that nobody chose.
const BLIND: u64 = 8;

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

/// A machine with its token and its wallet.
struct Machine {
    body: Value,
    address: String,
}

impl Machine {
    async fn invited(scene: &mut Scene, owner: &str) -> Self {
        scene.server.crash().await;
        let body = json!({"grant": 5, "ownerId": owner, "tag": "herd"});
        let made = scene.server.as_operator("POST", "/api/enrolment-tokens").json(body).await.ok(201);
        let token = text(&made["token"]);
        let signer = PrivateKeySigner::random();
        let url = format!("http://{}", scene.server.addr);
        // The program's clock is ahead.
        let at = (Utc::now() + TimeDelta::seconds(scene.ahead())).timestamp();
        let address = signer.address().to_string();
        let said = format!("Otonix wallet {address} for {token} at {url} {at}");
        let signature = signer.sign_message_sync(said.as_bytes()).expect("a key signs").to_string();
        let body = json!({"token": token, "walletAddress": address,
            "walletProof": {"signature": signature, "unixTime": at}});
        Self { body, address }
    }

    /// The request, byte for byte the same each time.
    fn ask(&self, server: &Server, time: &str) -> Call {
        let once = format!("{time} {}", self.address);
        server.post("/api/enrol").once(&once).json(self.body.clone())
    }

    /// What became of it, whoever was killed: one agent with one grant, and a key that is good.
    async fn is_enrolled(&self, server: &Server, owner: &str) {
        let first = self.ask(server, "first").await.ok(201);
        let told = match &first["key"] {
            // Its first answer was written, and may have been read: whoever did not read it asks anew.
            Value::Null => {
                assert_eq!(first["secretShown"], true);
                self.ask(server, "second").await.ok(201)
            }
            _ => first.clone(),
        };
        assert_eq!(told["agent"]["id"], first["agent"]["id"]);
        let key = Key { id: text(&told["keyId"]), secret: text(&told["key"]), owner: owner.to_owned() };
        let agent = Agent { id: text(&told["agent"]["id"]), key };
        server.beat(&agent).await;
        let shown = server.look(&agent).await;
        assert_eq!((&shown["credits"], &shown["walletAddress"]), (&json!(5), &json!(self.address)));
        let all = server.as_operator("GET", "/api/agents?limit=1000").await.list();
        assert_eq!(all.iter().filter(|one| one["walletAddress"] == json!(self.address)).count(), 1);
        server.audit();
    }
}

async fn killed_anywhere_a_machine_enrols_as_one_agent_with_a_key_that_is_good(store: Store) {
    let mut scene = Scene::open(store).await;
    scene.server.crash().await;
    let owner = scene.server.key("owner").await.owner;
    let mut points: Vec<At> = Vec::new();
    for (table, when) in
        [("enrolments", "TRUE"), ("api_keys", "NEW.kind = 'agent'"), ("agents", "NEW.wallet_proven")]
    {
        points.extend(At::commit(table, when));
    }
    for at in scene.points(&points) {
        let machine = Machine::invited(&mut scene, &owner).await;
        let mut asking = None;
        scene
            .killed_asked(at, async |server: &Server| {
                asking = Some(tokio::spawn(machine.ask(server, "first").attempt()));
            })
            .await;
        let _no_answer = asking.expect("it was asked").await;
        scene.server.crash().await;
        machine.is_enrolled(&scene.server, &owner).await;
    }
    for moment in 0..BLIND {
        let machine = Machine::invited(&mut scene, &owner).await;
        let asking = tokio::spawn(machine.ask(&scene.server, "first").attempt());
        tokio::time::sleep(Duration::from_millis(moment * 3)).await;
        scene.server.kill();
        let _no_answer_or_one = asking.await;
        scene.server.crash().await;
        machine.is_enrolled(&scene.server, &owner).await;
    }
}
