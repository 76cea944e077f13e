//! The keystore against published vectors, wrong passphrases, damage and open permissions.

use std::os::unix::fs::PermissionsExt;

use super::*;

/// Cost of the tests that do not care: N = 2^2.
const CHEAP: u8 = 2;

/// A file of geth's own test data.
const VECTOR: &str = r#"{"address":"7ef5a6135f1fd6a02593eedc869c6d41d934aef8","crypto":{"cipher":"aes-128-ctr",
"ciphertext":"1d0839166e7a15b9c1333fc865d69858b22df26815ccf601b28219b6192974e1","cipherparams":
{"iv":"8df6caa7ff1b00c4e871f002cb7921ed"},"kdf":"scrypt","kdfparams":{"dklen":32,"n":8,"p":16,"r":8,
"salt":"e5e6ef3f4ea695f496b643ebd3f75c0aa58ef4070e90c80c5d3fb0241bf1595c"},
"mac":"6d16dfde774845e4585357f24bce530528bc69f4f84e1e22880d34fa45c273e5"},
"id":"950077c7-71e3-4c44-a4a1-143919141ed4","version":3}"#;

/// A vector of the format's test suite: a key whose leading zero byte is left out.
const SHORT_VECTOR: &str = r#"{"crypto":{"cipher":"aes-128-ctr","cipherparams":{"iv":"e0c41130a323adc1446fc82f724bca2f"},
"ciphertext":"9517cd5bdbe69076f9bf5057248c6c050141e970efa36ce53692d5d59a3984","kdf":"scrypt","kdfparams":{"dklen":32,
"n":2,"r":8,"p":1,"salt":"711f816911c92d649fb4c84b047915679933555030b3552c1212609b38208c63"},
"mac":"d5e116151c6aa71470e67a7d42c9620c75c4d23229847dcc127794f0732b0db5"},
"id":"fecfc4ce-e956-48fd-953b-30f8b52ed66c","version":3}"#;

fn secret(text: &str) -> Secret {
    Secret::from(text)
}

#[test]
fn published_vectors_open() {
    let wallet = decrypt(VECTOR, &secret("foobar")).expect("opens");
    assert_eq!(wallet.address().to_string().to_lowercase(), "0x7ef5a6135f1fd6a02593eedc869c6d41d934aef8");
    let wallet = decrypt(SHORT_VECTOR, &secret("foo")).expect("opens");
    let key = "0x00fa7b3db73dc7dfdf8c5fbdb796d741e4488628c41fc4febd9160a866ba0f35";
    assert_eq!(wallet.private_key_hex().as_str(), key);
}

#[test]
fn what_is_written_opens_with_its_passphrase_only() {
    let wallet = Wallet::generate();
    let text = encrypt_at_cost(&wallet, &secret("right"), CHEAP);
    assert!(!text.contains(&wallet.private_key_hex()[2..]));
    assert_eq!(decrypt(&text, &secret("right")).expect("opens").address(), wallet.address());
    for wrong in ["", "Right", "right "] {
        let opened = decrypt(&text, &secret(wrong));
        assert!(matches!(opened, Err(KeystoreError::WrongPassphrase)), "{wrong:?}");
    }
    let again = encrypt_at_cost(&wallet, &secret("right"), CHEAP);
    assert_ne!(text, again, "salt and iv are new each time");
}

#[test]
fn a_file_is_private_made_whole_and_never_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("keystore.json");
    assert!(matches!(open(&path, &secret("x")), Err(KeystoreError::NotFound(_))));
    let wallet = Wallet::generate();
    create(&path, &wallet, &secret("right")).expect("is written");
    let mode = std::fs::metadata(&path).expect("is there").permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    assert_eq!(open(&path, &secret("right")).expect("opens").address(), wallet.address());
    let text = std::fs::read_to_string(&path).expect("is text");
    assert!(text.contains("\"n\":131072"), "{text}");

    let second = create(&path, &Wallet::generate(), &secret("right"));
    assert!(matches!(second, Err(KeystoreError::Exists(_))));
    assert_eq!(std::fs::read_to_string(&path).expect("is text"), text);
    let files = std::fs::read_dir(folder.path()).expect("a folder").count();
    assert_eq!(files, 1, "no draft is left");
}

#[test]
fn a_file_that_others_can_reach_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("keystore.json");
    std::fs::write(&path, SHORT_VECTOR).expect("is written");
    for mode in [0o644, 0o640, 0o604, 0o660, 0o601] {
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("is set");
        let opened = open(&path, &secret("foo"));
        assert!(matches!(opened, Err(KeystoreError::TooOpen { mode: m, .. }) if m == mode), "{mode:o}");
    }
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o400)).expect("is set");
    assert!(open(&path, &secret("foo")).is_ok());
}

#[test]
fn a_damaged_file_is_named_as_such() {
    let text = encrypt_at_cost(&Wallet::generate(), &secret("right"), CHEAP);
    for end in 0..text.len() {
        let opened = decrypt(&text[..end], &secret("right"));
        assert!(matches!(opened, Err(KeystoreError::Damaged(_))), "cut at {end}");
    }
    let with = |from: &str, to: &str| {
        assert!(SHORT_VECTOR.contains(from), "{from}");
        decrypt(&SHORT_VECTOR.replace(from, to), &secret("foo"))
    };
    for (from, to) in [
        ("e0c41130", "e0c4113"),
        ("e0c41130", "x0c41130"),
        ("711f8169", "711f816"),
        ("d5e11615", ""),
        ("\"n\":2", "\"n\":3"),
        ("\"n\":2", "\"n\":0"),
        ("\"r\":8", "\"r\":0"),
        ("\"p\":1", "\"p\":0"),
        ("\"version\":3", "\"version\":3,\"address\":\"00\""),
        ("\"version\":3", "\"version\":3,\"address\":\"f39fd6e51aad88f6f4ce6ab8827279cfffb92266\""),
    ] {
        assert!(matches!(with(from, to), Err(KeystoreError::Damaged(_))), "{from} -> {to}");
    }
    for (from, to) in [("\"version\":3", "\"version\":4"), ("aes-128-ctr", "aes-256"), ("scrypt", "pbkdf2")] {
        assert!(matches!(with(from, to), Err(KeystoreError::Unsupported(_))), "{from} -> {to}");
    }
    // The mac covers the ciphertext: a flipped digit is not told from a wrong passphrase, and never opens.
    assert!(matches!(with("9517cd5b", "9517cd5c"), Err(KeystoreError::WrongPassphrase)));
}

#[test]
fn a_cost_beyond_the_bound_is_refused_before_it_is_paid() {
    for (from, to) in [
        ("\"n\":8", "\"n\":524288"),
        ("\"n\":8", "\"n\":9223372036854775808"),
        ("\"n\":8,\"p\":16,\"r\":8", "\"n\":262144,\"p\":1,\"r\":9"),
        ("\"r\":8", "\"r\":4294967295"),
        ("\"p\":16", "\"p\":4294967295"),
    ] {
        assert!(VECTOR.contains(from), "{from}");
        let opened = decrypt(&VECTOR.replace(from, to), &secret("foobar"));
        assert!(matches!(opened, Err(KeystoreError::TooCostly)), "{to}");
    }
    // Outside scrypt's own definition (N < 2^(16 r)).
    let opened = decrypt(
        &VECTOR.replace("\"n\":8,\"p\":16,\"r\":8", "\"n\":262144,\"p\":8,\"r\":1"),
        &secret("foobar"),
    );
    assert!(matches!(opened, Err(KeystoreError::Unsupported(_))));
}

#[test]
fn a_random_passphrase_is_long_and_new() {
    assert_eq!(random_passphrase().expose().len(), 64);
    assert_ne!(random_passphrase().expose(), random_passphrase().expose());
}
