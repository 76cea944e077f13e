//! What `doctor` says of the accounts at vendors.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Output;

use crate::fake::Fake;
use crate::fake::switches::How;
use crate::support::{Server, Store};

struct Patient {
    server: Server,
    fake: Fake,
}

impl Patient {
    async fn new() -> Self {
        let mut server = Server::start(Store::Sqlite).await;
        server.stop().await;
        let private = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(server.data_dir(), private).expect("our directory");
        Self { server, fake: Fake::start() }
    }

    /// What the program says with the fake's options, of which some are others: whether all is well, and its lines.
    fn examined(&self, others: &[(&str, &str)]) -> (bool, String) {
        let mut options = self.fake.options();
        for (flag, value) in others {
            options.retain(|(known, _)| known != flag);
            if !value.is_empty() {
                options.push((flag, (*value).to_owned()));
            }
        }
        let mut args = vec!["doctor"];
        args.extend(options.iter().flat_map(|(flag, value)| [*flag, value.as_str()]));
        let Output { status, stdout, .. } = self.server.run_with(&args);
        (status.success(), String::from_utf8(stdout).expect("text"))
    }

    #[track_caller]
    fn says(&self, others: &[(&str, &str)], is_well: bool, lines: &[&str]) {
        let (well, said) = self.examined(others);
        assert_eq!(well, is_well, "{said}");
        for line in lines {
            assert!(said.lines().any(|one| one.starts_with(line)), "{line}\n---\n{said}");
        }
        assert!(!said.contains(self.fake.token()), "the token is shown: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_that_can_be_used_are_said_to_be() {
    let patient = Patient::new().await;
    patient.says(
        &[],
        true,
        &[
            "ok   Vercel answers; 0 domains are in the account",
            "ok   Vercel's registrar sells 8 endings",
            "ok   Cherry Servers answers; the token is ops@example.com's",
            "ok   2 plans are sold at Cherry Servers",
            "ok   servers are bought into the project project-321",
        ],
    );
    assert!(patient.fake.violations().is_empty(), "{:?}", patient.fake.violations());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_refused_is_said_to_be() {
    let patient = Patient::new().await;
    let wrong = "a-token-that-nobody-knows";
    let others = [("--vercel-token", wrong), ("--cherry-token", wrong)];
    let lines = [
        "BAD  Vercel: vercel does not take this server's token for this (401): check vercel-token",
        "BAD  Vercel's registrar: vercel does not take this server's token",
        "BAD  Cherry Servers: cherry does not take this server's token for this (401): check cherry-token",
        "BAD  Cherry Servers' plans: cherry does not take this server's token",
    ];
    patient.says(&others, false, &lines);
    assert!(!patient.examined(&others).1.contains(wrong));
    // A token may list domains and not be let into the registrar.
    patient.fake.fail_times("getSupportedTlds", How::Instead(403), 9);
    let lines = [
        "ok   Vercel answers",
        "BAD  Vercel's registrar: vercel does not take this server's token for this (403): the token must be",
    ];
    patient.says(&[], false, &lines);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vendor_that_is_away_is_said_to_be() {
    let patient = Patient::new().await;
    let nobody = "http://127.0.0.1:9";
    let others = [("--vercel-url", nobody), ("--cherry-url", nobody)];
    let lines = [
        "BAD  Vercel: vercel cannot be asked",
        "BAD  Vercel's registrar: vercel cannot be asked",
        "BAD  Cherry Servers: cherry cannot be asked",
        "BAD  Cherry Servers does not tell of the project 321: cherry cannot be asked",
    ];
    patient.says(&others, false, &lines);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_in_the_way_of_buying_is_named() {
    let patient = Patient::new().await;
    patient.says(&[("--cherry-project", "")], false, &["BAD  children get no servers"]);
    let wrong = [("--cherry-project", "999")];
    patient.says(
        &wrong,
        false,
        &["BAD  the Cherry Servers token has no project 999: correct cherry-project"],
    );
    patient.fake.with(|world| world.cherry.currency = "EUR".to_owned());
    patient.says(&[], false, &["BAD  Cherry Servers bills in euros, and there is no rate that counts"]);
    let today = chrono::Utc::now().format("%Y-%m-%d").to_string();
    patient.says(&[("--eur-usd", "1.1"), ("--eur-usd-date", &today)], true, &["ok   2 plans are sold"]);
}
