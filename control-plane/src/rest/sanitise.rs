//! What the public lists hide.

use std::net::IpAddr;

use otonix_sdk::api::agents::Agent;
use otonix_sdk::api::records::{Domain, Sandbox, Transaction};

/// `0x2a18****461d`
fn address(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    if chars.len() <= 10 {
        return "****".to_owned();
    }
    let head: String = chars[..6].iter().collect();
    let tail: String = chars[chars.len() - 4..].iter().collect();
    format!("{head}****{tail}")
}

/// `10.0.*.*`; of IPv6 the first two groups.
fn ip(text: &str) -> String {
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => {
            let [a, b, ..] = ip.octets();
            format!("{a}.{b}.*.*")
        }
        Ok(IpAddr::V6(ip)) => {
            let [a, b, ..] = ip.segments();
            format!("{a:x}:{b:x}:*")
        }
        Err(_) => "*".to_owned(),
    }
}

/// An agent for everyone.
pub fn agent(mut agent: Agent) -> Agent {
    agent.wallet_address = agent.wallet_address.as_deref().map(address);
    agent.vps_ip = agent.vps_ip.as_deref().map(ip);
    agent.genesis_prompt = None;
    agent
}

/// A sandbox for everyone.
pub fn sandbox(mut sandbox: Sandbox) -> Sandbox {
    sandbox.ip_address = sandbox.ip_address.as_deref().map(ip);
    sandbox
}

/// A domain for everyone.
pub fn domain(mut domain: Domain) -> Domain {
    domain.dns_records = Vec::new();
    // Whoever knows which mail is waited for can write it.
    domain.contact_verified = None;
    domain.verify_by = None;
    domain
}

/// A transaction for everyone: what a reporter attached may hold anything, so it is left out.
pub fn transaction(mut transaction: Transaction) -> Transaction {
    transaction.from_address = transaction.from_address.as_deref().map(address);
    transaction.to_address = transaction.to_address.as_deref().map(address);
    transaction.metadata = None;
    transaction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_for_everyone_says_nothing_of_its_registrant() {
        let text = r#"{"id": "01920000-0000-7000-8000-000000000000", "name": "a.example", "status": "active",
            "registeredAt": null, "expiresAt": null, "dnsRecords": [{"type": "A", "value": "10.0.0.1"}],
            "sandboxId": null, "agentId": null, "autoRenew": false, "managed": true,
            "contactVerified": false, "verifyBy": "2026-12-01T00:00:00Z"}"#;
        let whole: Domain = serde_json::from_str(text).expect("a domain");
        assert_eq!(whole.contact_verified, Some(false));
        let shown = domain(whole);
        assert_eq!((shown.contact_verified, shown.verify_by, shown.dns_records.len()), (None, None, 0));
    }

    #[test]
    fn addresses_are_masked() {
        assert_eq!(address("0x2a18aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa461d"), "0x2a18****461d");
        assert_eq!(address("short"), "****");
        assert_eq!(ip("10.0.3.4"), "10.0.*.*");
        assert_eq!(ip("2001:db8::1"), "2001:db8:*");
        assert_eq!(ip("nonsense"), "*");
    }
}
