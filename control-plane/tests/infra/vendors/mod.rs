//! The clients of vendors, and the routes that need no purchase.

mod clients;
mod contract;
mod doctor;
mod prism;
mod routes;
mod servers;

use chrono::Utc;
use otonix_control_plane::upstream::cherry::Cherry;
use otonix_control_plane::upstream::http::vendor_url;
use otonix_control_plane::upstream::providers::{
    BuyDomain, Contact, CreateServer, Cycle, Deadline, Decimal, DomainName, Slug,
};
use otonix_control_plane::upstream::vercel::Vercel;
use otonix_sdk::secret::Secret;
use std::collections::BTreeMap;
use std::time::Duration;

/// The registrar's client at an address.
pub fn vercel(url: &str, token: &str) -> Vercel {
    let url = vendor_url(url).expect("an address on this machine");
    Vercel::new(url, Secret::from(token), None).expect("a client")
}

/// The client of the seller of servers at an address.
pub fn cherry(url: &str, token: &str) -> Cherry {
    let url = vendor_url(url).expect("an address on this machine");
    Cherry::new(url, Secret::from(token), Some(123), Some(321)).expect("a client")
}

pub fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(30))
}

pub fn name(text: &str) -> DomainName {
    DomainName::parse(text).expect("a domain")
}

pub fn slug(text: &str) -> Slug {
    Slug::parse(text).expect("a slug")
}

pub fn amount(text: &str) -> Decimal {
    Decimal::parse(text).expect("an amount")
}

/// An order for a domain at the usual price.
pub fn order(domain: &str) -> BuyDomain {
    BuyDomain {
        domain: name(domain),
        years: 1,
        expected: amount("11.25"),
        contact: Contact {
            first_name: "Ada".to_owned(),
            last_name: "Example".to_owned(),
            email: "ada@example.org".to_owned(),
            phone: "+37061234567".to_owned(),
            address1: "Street 1".to_owned(),
            city: "Vilnius".to_owned(),
            state: "Vilnius".to_owned(),
            zip: "01100".to_owned(),
            country: "LT".to_owned(),
            address2: None,
            company_name: None,
            additional: serde_json::Map::new(),
        },
        language_code: None,
    }
}

/// An order for a small server, tagged with the time.
pub fn machine() -> CreateServer {
    let tag = Utc::now().timestamp_micros().to_string();
    CreateServer {
        project: 321,
        plan: slug("B1-1-1gb-20s-shared"),
        region: slug("LT-Siauliai"),
        image: slug("ubuntu_24_04_64bit"),
        hostname: "agent-seven".to_owned(),
        cycle: Cycle::Hourly,
        ssh_keys: vec![1],
        user_data: Some(Secret::from("#!/bin/sh\necho one-time-token\n")),
        tags: BTreeMap::from([("otonix_order".to_owned(), tag)]),
    }
}
