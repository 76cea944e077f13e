//! The switches of the fake when it is a program of its own: `POST /admin/COMMAND` with a JSON object.

use std::time::Duration;

use chrono::TimeDelta;
use serde_json::{Value, json};

use super::World;
use super::switches::{Fault, How};
use super::wire::Reply;

/// Does what a command says and answers with what is known.
pub fn answer(world: &mut World, command: &str, body: Option<&Value>) -> Reply {
    let nothing = Value::Null;
    let body = body.unwrap_or(&nothing);
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    let number = |name: &str| body[name].as_u64().unwrap_or_default();
    match command {
        "fault" => {
            let Some(how) = how(&text("how"), number("ms"), number("status")) else {
                return Reply::json(400, &json!({ "message": "no such fault" }));
            };
            let times = body["times"].as_u64().and_then(|times| u32::try_from(times).ok()).unwrap_or(1);
            world.add_fault(Fault { operation: text("operation"), how, times });
        }
        "mend" => world.faults.clear(),
        "advance" => world.advance(TimeDelta::seconds(body["seconds"].as_i64().unwrap_or_default())),
        "limit" => world.limit(body["perSecond"].as_u64().and_then(|most| usize::try_from(most).ok())),
        "price-domain" => {
            world.vercel.prices.insert(text("domain"), (text("purchase"), text("renewal")));
        }
        "take-domain" => {
            world.vercel.taken.insert(text("domain"));
        }
        "price-plan" => {
            world.cherry.prices.insert((text("plan"), text("unit")), text("price"));
        }
        "stock" => {
            world.cherry.stock.insert((text("plan"), text("region")), number("left"));
        }
        "address" => world.cherry.addresses.push(text("address")),
        "state" => {}
        _ => return Reply::json(404, &json!({ "message": "no such command" })),
    }
    Reply::json(200, &state(world))
}

fn how(name: &str, ms: u64, status: u64) -> Option<How> {
    let (wait, status) = (Duration::from_millis(ms), u16::try_from(status).ok()?);
    Some(match name {
        "late" => How::Late(wait),
        "act-later" => How::ActLater(wait),
        "lost" => How::Lost,
        "unheard" => How::Unheard,
        "twice" => How::Twice,
        "half" => How::Half,
        "noise" => How::Noise,
        "instead" => How::Instead(status),
        "act-then" => How::ActThen(status),
        "too-often" => How::TooOften,
        _ => return None,
    })
}

fn state(world: &World) -> Value {
    let servers = world.cherry.machines.values().map(|machine| {
        json!({
            "id": machine.id, "hostname": machine.hostname, "address": machine.address, "tags": machine.tags,
            "userData": machine.user_data, "powered": machine.powered, "reboots": machine.reboots,
            "deleted": machine.deleted_at.is_some(),
        })
    });
    let domains = world.vercel.domains.iter().map(|(name, owned)| {
        json!({ "name": name, "expiresAt": owned.expires_at.to_rfc3339(), "records": owned.records })
    });
    json!({
        "token": world.token,
        "violations": world.violations,
        "requests": world.seen.len(),
        "bought": world.vercel.bought,
        "renewed": world.vercel.renewed,
        "servers": servers.collect::<Vec<_>>(),
        "domains": domains.collect::<Vec<_>>(),
    })
}
