//! The first start of a new server: a script that installs the daemon, enrols it for its agent by a one-time token, and
//! then runs the caller's part. The token is made for each attempt and never stored.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use otonix_sdk::error::ErrorCode;
use otonix_sdk::ids::AgentId;
use otonix_sdk::secret::Secret;

use crate::app::App;
use crate::error::Error;
use crate::service::enrolment;
use crate::service::purchases::act::{Ready, Report};
use crate::service::purchases::item::{Item, Private};
use crate::service::purchases::machine::News;
use crate::store::purchases::Purchase;

/// The daemon's service, as it is shipped.
const UNIT: &str = include_str!("../../../../deploy/systemd/otonix-agent.service");
const SCRIPT: &str = include_str!("bootstrap.sh");

/// What is installed, and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Where the daemon is had: the program itself, or a tar.gz that holds it.
    pub url: String,
    /// SHA-256 of what is there, hex.
    pub sha256: String,
}

/// Where the daemon is had.
///
/// # Errors
/// 503 `bootstrap_not_configured`.
pub fn package(app: &App) -> Result<&Package, Error> {
    app.settings.agent_package.as_ref().ok_or(Error::NotConfigured {
        code: ErrorCode::BootstrapNotConfigured,
        detail: "installing the daemon on new servers is not configured on this server",
    })
}

/// Puts the script into an order for a server, if the daemon is to be installed there.
///
/// # Errors
/// What stands in the way; nothing was sent.
pub async fn complete(app: &App, purchase: &Purchase, item: &Item, ready: &mut Ready) -> Result<(), Report> {
    let (Item::Server(item), Ready::Server(order)) = (item, ready) else { return Ok(()) };
    if !item.bootstrap {
        return Ok(());
    }
    let not_done = |error: &Error| Report::new(News::NotDone, error.code(), error.to_string());
    let package = package(app).map_err(|error| not_done(&error))?;
    let token = token(app, purchase).await.map_err(|error| not_done(&error))?;
    let urls = app.settings.proof_urls();
    let url = urls.first().map_or("", String::as_str);
    let own = Private::of(purchase).user_data;
    order.user_data = Some(script(package, url, &token, own.as_deref()));
    Ok(())
}

/// A script for the first start.
pub fn script(package: &Package, server: &str, token: &Secret, own: Option<&str>) -> Secret {
    let own = own.map_or_else(String::new, |own| STANDARD.encode(own));
    let text = SCRIPT
        .replace("@URL@", &quoted(&package.url))
        .replace("@SHA256@", &quoted(&package.sha256))
        .replace("@SERVER@", &quoted(server))
        .replace("@TOKEN@", &quoted(token.expose()))
        .replace("@OWN@", &quoted(&own))
        .replace("@UNIT@", UNIT.trim_end());
    Secret::new(text)
}

/// A word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Made for each attempt, so that none is ever kept.
async fn token(app: &App, purchase: &Purchase) -> Result<Secret, Error> {
    enrolment::invite_server(app, AgentId::from(purchase.agent)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_put_into_the_script_is_run() {
        let evil = "'; touch /tmp/x; '$(touch /tmp/y)`z`";
        let package = Package { url: evil.to_owned(), sha256: "00".repeat(32) };
        let text = script(&package, evil, &Secret::new(evil.to_owned()), Some(evil));
        let text = text.expose();
        assert!(!text.contains('@') || !text.contains("@TOKEN@"), "every place is filled");
        assert!(text.contains(r"''\''; touch /tmp/x; '\''$(touch /tmp/y)`z`'"), "{text}");
        let checked = std::process::Command::new("bash")
            .arg("-n")
            .arg("-c")
            .arg(text)
            .status()
            .expect("there is a bash");
        assert!(checked.success());
    }
}
