//! Servers at the vendor: whose they are, what may be done to them, and how they end. Only managed ones, which a
//! purchase or the operator brought, are ever touched.

use std::collections::BTreeMap;

use otonix_sdk::api::vendors::{ActOnServer, ServerTold, VendorServer};
use otonix_sdk::secret::Secret;

use crate::app::App;
use crate::auth::{Caller, Principal};
use crate::error::Error;
use crate::service::catalogue;
use crate::service::vendors::{WRITE_TIME, compute, failed, page_of};
use crate::store::list::{Page, Query};
use crate::store::sandboxes::{self, ManagedServer};
use crate::store::writer::{IdemFor, Target, Written};
use crate::upstream::providers::{Deadline, Server, ServerAction, ServerStatus, Slug, VendorError};

/// Longest script for a first start.
const LONGEST_SCRIPT: usize = 16 * 1024;
const MOST_KEYS: usize = 50;
/// What the vendor does not take in a password.
const NOT_IN_PASSWORD: &str = "'\" `!$%&;#";

/// The servers of a project that a caller may see: its own managed ones; the operator all; in open mode anyone the
/// managed ones. Newest first.
///
/// # Errors
/// 401 for nobody in guarded mode, 404 for a project that is not there, 503 when the vendor cannot be asked.
pub async fn list(
    app: &App,
    caller: &Caller,
    project: u64,
    query: Query,
) -> Result<Page<VendorServer>, Error> {
    if !caller.is_unrestricted() {
        caller.key()?;
    }
    let servers = catalogue::servers(app, project).await?;
    let asked = project.to_string();
    let rows =
        app.db.read(move |conn| Box::pin(async move { sandboxes::managed_in(conn, &asked).await })).await?;
    let rows: BTreeMap<String, ManagedServer> =
        rows.into_iter().map(|row| (row.vendor_id.clone(), row)).collect();
    let visible = servers.iter().filter_map(|server| {
        let row = rows.get(&server.id.to_string());
        let is_own = row.is_some_and(|row| caller.owns(row.owner, row.agent));
        let is_shown = match caller.principal {
            Principal::Operator => true,
            Principal::Key(_) | Principal::Anonymous => is_own || (caller.is_unrestricted() && row.is_some()),
        };
        is_shown.then(|| shown(server, row))
    });
    Ok(page_of(visible, &query, |server| (server.created_at, server.id.into())))
}

fn shown(server: &Server, row: Option<&ManagedServer>) -> VendorServer {
    let text = |slug: &Option<Slug>| slug.as_ref().map(Slug::to_string);
    VendorServer {
        id: server.id,
        hostname: server.hostname.clone(),
        status: match &server.status {
            ServerStatus::Deploying => "deploying".to_owned(),
            ServerStatus::Deployed => "deployed".to_owned(),
            ServerStatus::Rescue => "rescue".to_owned(),
            ServerStatus::Failed => "failed".to_owned(),
            ServerStatus::Other(word) => word.clone(),
        },
        state: server.state.clone(),
        plan: text(&server.plan),
        region: text(&server.region),
        image: server.image.clone(),
        ip_address: server.address.map(|address| address.to_string()),
        created_at: server.created_at,
        sandbox_id: row.map(|row| row.id.into()),
        agent_id: row.and_then(|row| row.agent).map(Into::into),
        paid_until: row.and_then(|row| row.paid_until),
    }
}

/// The managed server of a vendor's id, when it is the caller's.
async fn own(app: &App, caller: &Caller, id: u64) -> Result<ManagedServer, Error> {
    caller.key()?;
    let found = app
        .db
        .read(move |conn| Box::pin(async move { sandboxes::managed_server(conn, &id.to_string()).await }))
        .await?;
    let found = found.filter(|row| caller.owns(row.owner, row.agent));
    found.ok_or_else(|| Error::not_found("server", id))
}

/// Does something to a caller's own server.
///
/// # Errors
/// 401 without a key, 404 for what is not its own, 400, 503 when the vendor cannot be asked or did not say.
pub async fn act(
    app: &App,
    caller: &Caller,
    id: u64,
    body: ActOnServer,
    idem: Option<IdemFor<ServerTold>>,
) -> Result<Written<ServerTold>, Error> {
    let row = own(app, caller, id).await?;
    let kind = body.kind.clone();
    let action = action(body, &row.name)?;
    compute(app)?.act(id, &action, Deadline::after(WRITE_TIME)).await.map_err(failed)?;
    let told = ServerTold { id, kind, status: "accepted".to_owned() };
    let power = match action {
        ServerAction::PowerOff => Some(false),
        ServerAction::PowerOn | ServerAction::Reboot | ServerAction::Rebuild { .. } => Some(true),
        ServerAction::EnterRescueMode { .. } | ServerAction::ExitRescueMode => None,
    };
    let noted = app.writer.run(Target::Shared, idem, move |tx| {
        Box::pin(async move {
            if let Some(on) = power {
                sandboxes::turned(tx, row.id, on).await?;
            }
            Ok(told)
        })
    });
    noted.await
}

/// Ends a caller's own server, and its bill. What was paid and not used is not given back.
///
/// # Errors
/// As [`act`].
pub async fn end(app: &App, caller: &Caller, id: u64) -> Result<(), Error> {
    let row = own(app, caller, id).await?;
    let vendor = compute(app)?;
    let until = Deadline::after(WRITE_TIME);
    match vendor.delete(id, until).await {
        // A server that is gone is gone, however often it is ended.
        Err(VendorError::Unknown { .. }) => vendor.delete(id, until).await.map_err(failed)?,
        done => done.map_err(failed)?,
    }
    app.writer
        .apply(Target::Alone, move |tx| {
            Box::pin(async move { Ok::<(), Error>(sandboxes::release(tx, row.id).await?) })
        })
        .await
}

fn action(body: ActOnServer, name: &str) -> Result<ServerAction, Error> {
    match body.kind.as_str() {
        "reboot" => Ok(ServerAction::Reboot),
        "power-on" => Ok(ServerAction::PowerOn),
        "power-off" => Ok(ServerAction::PowerOff),
        "exit-rescue-mode" => Ok(ServerAction::ExitRescueMode),
        "enter-rescue-mode" => Ok(ServerAction::EnterRescueMode { password: password(body.password)? }),
        "rebuild" => {
            let ssh_keys = body.ssh_keys.unwrap_or_default();
            if ssh_keys.len() > MOST_KEYS {
                return Err(Error::invalid("sshKeys", format!("must be at most {MOST_KEYS}")));
            }
            if body.user_data.as_ref().is_some_and(|script| script.expose().len() > LONGEST_SCRIPT) {
                return Err(Error::invalid("userData", "must have at most 16 KiB"));
            }
            Ok(ServerAction::Rebuild {
                image: Slug::of_field("image", body.image.as_deref().unwrap_or(""))?,
                hostname: hostname(body.hostname.as_deref().unwrap_or(name))?,
                password: password(body.password)?,
                ssh_keys,
                user_data: body.user_data,
            })
        }
        _ => {
            let all = "must be reboot, power-on, power-off, rebuild, enter-rescue-mode or exit-rescue-mode";
            Err(Error::invalid("type", all))
        }
    }
}

fn hostname(text: &str) -> Result<String, Error> {
    let fits = |label: &str| {
        let plain = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        plain && (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
    };
    if text.len() <= 253 && text.split('.').all(fits) {
        return Ok(text.to_owned());
    }
    Err(Error::invalid("hostname", "must be letters, digits and `-`"))
}

/// A password by the vendor's rules: eight characters or more, a letter, a capital that is not first, a digit that is
/// not last, and nothing that a shell would take for its own.
fn password(given: Option<Secret>) -> Result<Secret, Error> {
    let given = given.ok_or_else(|| Error::invalid("password", "is needed"))?;
    let text = given.expose();
    let length = text.chars().count();
    let capital = text.chars().skip(1).any(|c| c.is_ascii_uppercase());
    let digit = text.chars().take(length.saturating_sub(1)).any(|c| c.is_ascii_digit());
    let plain = text.chars().all(|c| c.is_ascii_graphic() && !NOT_IN_PASSWORD.contains(c));
    if (8..=128).contains(&length) && capital && digit && plain {
        return Ok(given);
    }
    let why = "must have 8 to 128 characters, a capital that is not first, a digit that is not last, and none of \
        ' \" ` ! $ % & ; #";
    Err(Error::invalid("password", why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_held_to_the_vendors_rules() {
        for good in ["abcD1efg", "1aBcdefg", "aB1-_.,:"] {
            assert!(password(Some(Secret::from(good))).is_ok(), "{good}");
        }
        for bad in
            ["", "aB1", "Abcdefg1", "abcdefgh", "Abc1defg", "abcDefg1", "abcD1ef$", "abc D1efg", "äbcD1efgh"]
        {
            assert!(password(Some(Secret::from(bad))).is_err(), "{bad}");
        }
        assert!(password(None).is_err());
    }

    #[test]
    fn actions_need_what_the_vendor_needs() {
        let read = |json: &str| action(serde_json::from_str(json).expect(json), "agent-seven");
        for good in [
            r#"{"type":"reboot"}"#,
            r#"{"type":"power-on"}"#,
            r#"{"type":"power-off"}"#,
            r#"{"type":"exit-rescue-mode"}"#,
            r#"{"type":"enter-rescue-mode","password":"abcD1efg"}"#,
            r#"{"type":"rebuild","image":"debian_12_64bit","password":"abcD1efg"}"#,
        ] {
            assert!(read(good).is_ok(), "{good}");
        }
        for bad in [
            r#"{"type":"power_on"}"#,
            r#"{"type":"reinstall"}"#,
            r#"{"type":"enter-rescue-mode"}"#,
            r#"{"type":"rebuild","password":"abcD1efg"}"#,
            r#"{"type":"rebuild","image":"../x","password":"abcD1efg"}"#,
            r#"{"type":"rebuild","image":"x","password":"abcD1efg","hostname":"a b"}"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
