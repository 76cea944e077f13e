//! The address of a control plane, checked once.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use reqwest::Url;

/// Why a text is not the address of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadServer {
    /// Not `http://` or `https://` and a host.
    #[error("must be an http:// or https:// URL with a host")]
    Malformed,
    /// It carries a user, a password, a query or a fragment.
    #[error("must have no user, password, query or fragment")]
    Extras,
    /// Keys would cross a network in plain text.
    #[error("must be https://, unless the server is on this machine (loopback)")]
    PlainHttp,
}

/// The address of a control plane: https, or http on loopback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerUrl(Url);

impl ServerUrl {
    /// Reads an address.
    ///
    /// # Errors
    /// [`BadServer`] when it is none, or would send keys in plain text.
    pub fn parse(text: &str) -> Result<Self, BadServer> {
        let mut url = Url::parse(text.trim()).map_err(|_| BadServer::Malformed)?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(BadServer::Malformed);
        }
        let bare = url.username().is_empty() && url.password().is_none();
        if !bare || url.query().is_some() || url.fragment().is_some() {
            return Err(BadServer::Extras);
        }
        let path = url.path().trim_end_matches('/').to_owned();
        url.set_path(&path);
        let server = Self(url);
        if !server.is_tls() && !server.is_loopback() {
            return Err(BadServer::PlainHttp);
        }
        Ok(server)
    }

    /// Whether the connection is encrypted.
    pub fn is_tls(&self) -> bool {
        self.0.scheme() == "https"
    }

    /// Whether the server is on this machine.
    pub fn is_loopback(&self) -> bool {
        let host = self.0.host_str().unwrap_or_default();
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        address.map_or(host.eq_ignore_ascii_case("localhost"), |address| address.is_loopback())
    }

    /// The address without a slash at its end.
    pub fn as_str(&self) -> &str {
        self.0.as_str().trim_end_matches('/')
    }

    /// The URL of a path, which begins with a slash.
    pub(super) fn url(&self, path: &str) -> Result<Url, BadServer> {
        Url::parse(&format!("{}{path}", self.as_str())).map_err(|_| BadServer::Malformed)
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ServerUrl {
    type Err = BadServer;

    fn from_str(text: &str) -> Result<Self, BadServer> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_cross_no_network_in_plain_text() {
        for (text, read) in [
            ("https://app.example", Ok("https://app.example")),
            ("https://app.example/", Ok("https://app.example")),
            ("https://app.example:8443/otonix//", Ok("https://app.example:8443/otonix")),
            ("http://127.0.0.1:8402", Ok("http://127.0.0.1:8402")),
            ("http://127.9.9.9", Ok("http://127.9.9.9")),
            ("http://[::1]:8402/", Ok("http://[::1]:8402")),
            ("http://localhost:8402", Ok("http://localhost:8402")),
            ("http://LOCALHOST", Ok("http://localhost")),
            ("http://app.example", Err(BadServer::PlainHttp)),
            ("http://10.0.0.1:8402", Err(BadServer::PlainHttp)),
            ("http://127.0.0.1.evil.example", Err(BadServer::PlainHttp)),
            ("http://localhost.evil.example", Err(BadServer::PlainHttp)),
            ("http://[::2]", Err(BadServer::PlainHttp)),
            ("http://me:pw@127.0.0.1", Err(BadServer::Extras)),
            ("http://127.0.0.1@evil.example", Err(BadServer::Extras)),
            ("https://app.example?x=1", Err(BadServer::Extras)),
            ("https://app.example#x", Err(BadServer::Extras)),
            ("ftp://127.0.0.1", Err(BadServer::Malformed)),
            ("127.0.0.1:8402", Err(BadServer::Malformed)),
            ("", Err(BadServer::Malformed)),
        ] {
            let parsed = ServerUrl::parse(text);
            assert_eq!(parsed.as_ref().map(ServerUrl::as_str), read.as_ref().copied(), "{text}");
        }
    }

    #[test]
    fn paths_are_appended() {
        let server = ServerUrl::parse("https://app.example/otonix/").expect("an address");
        let url = server.url("/api/keys").expect("a URL");
        assert_eq!(url.as_str(), "https://app.example/otonix/api/keys");
    }
}
