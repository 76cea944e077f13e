//! Where a request may go: origins, hosts of a list, and addresses that are not on the public internet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use reqwest::Url;

/// Scheme, host and port of a URL: payments, pins and headers never cross from one to another.
pub fn origin_of(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// Whether a host is named in a list. `*` names any, `host` any port of it, `host:port` that port.
pub fn is_listed(list: &[String], url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let port = url.port_or_known_default().unwrap_or_default();
    list.iter().any(|entry| {
        entry == "*"
            || entry.eq_ignore_ascii_case(host)
            || entry.eq_ignore_ascii_case(&format!("{host}:{port}"))
    })
}

/// The address of a host that is one, not a name.
pub fn literal(url: &Url) -> Option<IpAddr> {
    url.host_str()?.trim_matches(['[', ']']).parse().ok()
}

/// Whether an address is on the public internet. Everything else could be a neighbour that trusts this machine.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(v4: Ipv4Addr) -> bool {
    let [a, b, c, _] = v4.octets();
    let special = v4.is_private()
        || v4.is_loopback()
        || v4.is_link_local()
        || v4.is_multicast()
        || v4.is_documentation()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && (b == 18 || b == 19));
    !special
}

fn is_public_v6(v6: Ipv6Addr) -> bool {
    let [a, b, ..] = v6.segments();
    if let Some(v4) = embedded(v6) {
        return is_public_v4(v4);
    }
    let special = v6.is_loopback()
        || v6.is_unspecified()
        || v6.is_multicast()
        || v6.is_unique_local()
        || v6.is_unicast_link_local()
        || (a & 0xffc0) == 0xfec0
        || a == 0x100
        || (a == 0x2001 && b == 0xdb8);
    !special
}

/// The IPv4 address inside a mapped, compatible, NAT64 or 6to4 address.
fn embedded(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, g, h] = v6.segments();
    let v4 = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        Ipv4Addr::new(a, b, c, d)
    };
    let local = v6.is_loopback() || v6.is_unspecified();
    match (a, b, c, d, e, f) {
        (0, 0, 0, 0, 0, 0 | 0xffff) if !local => Some(v4(g, h)),
        (0x64, 0xff9b, ..) => Some(v4(g, h)),
        (0x2002, high, low, ..) => Some(v4(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).expect("a URL")
    }

    #[test]
    fn hosts_are_listed_by_name_with_or_without_port() {
        let list = ["api.example".to_owned(), "127.0.0.1:8402".to_owned()];
        for listed in ["https://api.example/x", "https://API.example:444", "http://127.0.0.1:8402/"] {
            assert!(is_listed(&list, &url(listed)), "{listed}");
        }
        for other in ["https://api.example.org", "https://x.api.example", "http://127.0.0.1:8403"] {
            assert!(!is_listed(&list, &url(other)), "{other}");
        }
        assert!(is_listed(&["*".to_owned()], &url("https://any.where")));
        assert!(!is_listed(&[], &url("https://any.where")));
    }

    #[test]
    fn an_origin_has_its_port() {
        assert_eq!(origin_of(&url("https://a.example/x?y")), "https://a.example");
        assert_ne!(origin_of(&url("https://a.example")), origin_of(&url("http://a.example")));
        assert_ne!(origin_of(&url("http://a.example:1")), origin_of(&url("http://a.example:2")));
        assert_eq!(literal(&url("http://[::1]:3/")), Some(IpAddr::V6(Ipv6Addr::LOCALHOST)));
        // Other ways to write an address are addresses as well.
        assert_eq!(literal(&url("http://2130706433/")), Some(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        assert_eq!(literal(&url("http://0x7f.1/")), Some(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        assert_eq!(literal(&url("http://a.example/")), None);
    }

    #[test]
    fn only_the_public_internet_is_public() {
        for public in
            ["1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
        {
            assert!(is_public(public.parse().expect("an address")), "{public}");
        }
        for private in [
            "127.0.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "192.0.0.8",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "fec0::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::a00:1",
            "2002:7f00:1::",
            "2001:db8::1",
        ] {
            assert!(!is_public(private.parse().expect("an address")), "{private}");
        }
    }
}
