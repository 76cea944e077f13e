//! The wallet on disk: Web3 Secret Storage, version 3, as geth and every other wallet reads it.
//!
//! Written with scrypt N = 2^17 (128 MiB for a moment), aes-128-ctr, keccak-256; one file, 0600, made whole or not
//! at all, never in place of another. Read with any cost up to 256 MiB. It does not choose or keep the passphrase.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use aes::Aes128;
use ctr::Ctr128BE;
use ctr::cipher::{KeyIvInit as _, StreamCipher as _};
use rand::TryRngCore as _;
use rand::rngs::OsRng;
use serde::{Deserialize, Serialize};
use sha3::{Digest as _, Keccak256};
use zeroize::Zeroizing;

use super::evm::{Wallet, parse_address};
use crate::clock::new_id;
use crate::secret::Secret;

/// What we write: N = 2^17.
const LOG_N: u8 = 17;
/// What we read at most: N = 2^18, as geth writes.
const MAX_LOG_N: u32 = 18;
const MAX_MEMORY: u64 = 256 * 1024 * 1024;
const MAX_P: u32 = 16;
/// A keystore has about 500 bytes.
const MAX_FILE: u64 = 64 * 1024;

/// Why a wallet cannot be kept or opened.
#[derive(Debug, thiserror::Error)]
pub enum KeystoreError {
    /// There is no such file.
    #[error("there is no keystore at {0}")]
    NotFound(PathBuf),
    /// There is one already; a key is never overwritten.
    #[error("a keystore exists at {0} and is not replaced")]
    Exists(PathBuf),
    /// Others could read or write it.
    #[error("the keystore {path} has mode {mode:04o}: only its owner may have access (chmod 600)")]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Another passphrase than it was written with (or a changed ciphertext: the two cannot be told apart).
    #[error("the passphrase does not open the keystore")]
    WrongPassphrase,
    /// The file cannot be understood.
    #[error("the keystore is damaged: {0}")]
    Damaged(&'static str),
    /// A version, cipher or key derivation that is not ours.
    #[error("the keystore uses {0}, which is not supported")]
    Unsupported(&'static str),
    /// Opening it would take more memory than allowed.
    #[error("the keystore's scrypt cost is too high (more than N = 2^{MAX_LOG_N} or 256 MiB)")]
    TooCostly,
    /// The disk refused.
    #[error("keystore {path}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    // Very old writers used a capital.
    #[serde(alias = "Crypto")]
    crypto: Crypto,
}

#[derive(Serialize, Deserialize)]
struct Crypto {
    cipher: String,
    cipherparams: CipherParams,
    ciphertext: String,
    kdf: String,
    kdfparams: serde_json::Value,
    mac: String,
}

#[derive(Serialize, Deserialize)]
struct CipherParams {
    iv: String,
}

#[derive(Serialize, Deserialize)]
struct ScryptParams {
    dklen: u32,
    n: u64,
    r: u32,
    p: u32,
    salt: String,
}

/// A new passphrase of 256 random bits, in hex.
pub fn random_passphrase() -> Secret {
    Secret::new(hex::encode(*random::<32>()))
}

/// Keeps a wallet in a new file.
///
/// # Errors
/// [`KeystoreError::Exists`] when there is a file already, [`KeystoreError::Io`] when the disk refuses.
pub fn create(path: &Path, wallet: &Wallet, passphrase: &Secret) -> Result<(), KeystoreError> {
    let text = encrypt(wallet, passphrase);
    let mut folder = path.parent().unwrap_or(Path::new("."));
    if folder.as_os_str().is_empty() {
        folder = Path::new(".");
    }
    let draft = folder.join(format!(".keystore-{}.tmp", new_id()));
    let result = write_new(&draft, text.as_bytes()).and_then(|()| publish(&draft, path));
    // The link is the file's own name; the draft's name goes in every case.
    let removed = std::fs::remove_file(&draft);
    result?;
    removed.map_err(|source| KeystoreError::Io { path: draft, source })?;
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|source| KeystoreError::Io { path: folder.to_owned(), source })
}

fn write_new(path: &Path, content: &[u8]) -> Result<(), KeystoreError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(|source| KeystoreError::Io { path: path.to_owned(), source })
}

/// Gives the written draft its name. A hard link fails when the name is taken, where a rename would replace.
fn publish(draft: &Path, path: &Path) -> Result<(), KeystoreError> {
    std::fs::hard_link(draft, path).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => KeystoreError::Exists(path.to_owned()),
        _ => KeystoreError::Io { path: path.to_owned(), source },
    })
}

/// Opens a wallet's file.
///
/// # Errors
/// [`KeystoreError`] saying what is wrong with the file or the passphrase.
pub fn open(path: &Path, passphrase: &Secret) -> Result<Wallet, KeystoreError> {
    decrypt(&read(path)?, passphrase)
}

fn read(path: &Path) -> Result<String, KeystoreError> {
    let io = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => KeystoreError::NotFound(path.to_owned()),
        _ => KeystoreError::Io { path: path.to_owned(), source },
    };
    let file = File::open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        return Err(KeystoreError::Damaged("not a file of a keystore's size"));
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeystoreError::TooOpen { path: path.to_owned(), mode });
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes).map_err(io)?;
    String::from_utf8(bytes).map_err(|_| KeystoreError::Damaged("not UTF-8"))
}

/// The keystore's text of a wallet.
pub fn encrypt(wallet: &Wallet, passphrase: &Secret) -> String {
    encrypt_at_cost(wallet, passphrase, LOG_N)
}

fn encrypt_at_cost(wallet: &Wallet, passphrase: &Secret, log_n: u8) -> String {
    let (salt, iv) = (random::<32>(), random::<16>());
    let params = ScryptParams { dklen: 32, n: 1 << log_n, r: 8, p: 1, salt: hex::encode(*salt) };
    let derived = derive(passphrase, salt.as_slice(), &params).expect("our own parameters are in range");
    let mut key = wallet.key_bytes();
    apply_cipher(&derived, &iv, key.as_mut_slice());
    let mac = mac(&derived, key.as_slice());
    let stored = Stored {
        version: 3,
        id: new_id().to_string(),
        address: Some(hex::encode(wallet.address().bytes())),
        crypto: Crypto {
            cipher: "aes-128-ctr".to_owned(),
            cipherparams: CipherParams { iv: hex::encode(*iv) },
            ciphertext: hex::encode(*key),
            kdf: "scrypt".to_owned(),
            kdfparams: serde_json::to_value(params).expect("plain data"),
            mac: hex::encode(mac),
        },
    };
    serde_json::to_string(&stored).expect("plain data")
}

/// The wallet of a keystore's text.
///
/// # Errors
/// [`KeystoreError`] saying what is wrong with the text or the passphrase.
pub fn decrypt(text: &str, passphrase: &Secret) -> Result<Wallet, KeystoreError> {
    let stored: Stored =
        serde_json::from_str(text).map_err(|_| KeystoreError::Damaged("not the JSON of a keystore"))?;
    let crypto = stored.crypto;
    if stored.version != 3 {
        return Err(KeystoreError::Unsupported("another version than 3"));
    }
    if crypto.cipher != "aes-128-ctr" {
        return Err(KeystoreError::Unsupported("another cipher than aes-128-ctr"));
    }
    if crypto.kdf != "scrypt" {
        return Err(KeystoreError::Unsupported("another key derivation than scrypt"));
    }
    let params: ScryptParams = serde_json::from_value(crypto.kdfparams)
        .map_err(|_| KeystoreError::Damaged("the scrypt parameters"))?;
    let salt = from_hex(&params.salt, "the salt")?;
    let iv = <[u8; 16]>::try_from(from_hex(&crypto.cipherparams.iv, "the iv")?)
        .map_err(|_| KeystoreError::Damaged("the iv"))?;
    let mut cipher_text = from_hex(&crypto.ciphertext, "the ciphertext")?;
    let expected = from_hex(&crypto.mac, "the mac")?;
    // Some writers leave leading zero bytes of the key out.
    if cipher_text.is_empty() || cipher_text.len() > 32 || expected.len() != 32 {
        return Err(KeystoreError::Damaged("the length of the ciphertext or the mac"));
    }
    let derived = derive(passphrase, &salt, &params)?;
    if !same(&mac(&derived, &cipher_text), &expected) {
        return Err(KeystoreError::WrongPassphrase);
    }
    apply_cipher(&derived, &iv, &mut cipher_text);
    let plain = Zeroizing::new(cipher_text);
    let mut key = Zeroizing::new([0; 32]);
    key.iter_mut().rev().zip(plain.iter().rev()).for_each(|(to, from)| *to = *from);
    let wallet = Wallet::from_bytes(&key).map_err(|_| KeystoreError::Damaged("the key is out of range"))?;
    match stored.address {
        Some(address) if !names(&address, &wallet) => {
            Err(KeystoreError::Damaged("its address is not the key's"))
        }
        _ => Ok(wallet),
    }
}

fn names(address: &str, wallet: &Wallet) -> bool {
    let digits = address.strip_prefix("0x").unwrap_or(address);
    parse_address(&format!("0x{}", digits.to_lowercase())) == Ok(wallet.address())
}

fn from_hex(text: &str, what: &'static str) -> Result<Vec<u8>, KeystoreError> {
    hex::decode(text.strip_prefix("0x").unwrap_or(text)).map_err(|_| KeystoreError::Damaged(what))
}

fn derive(
    passphrase: &Secret,
    salt: &[u8],
    params: &ScryptParams,
) -> Result<Zeroizing<[u8; 32]>, KeystoreError> {
    if params.dklen != 32 {
        return Err(KeystoreError::Unsupported("another derived length than 32"));
    }
    if !params.n.is_power_of_two() || params.n < 2 || params.r == 0 || params.p == 0 {
        return Err(KeystoreError::Damaged("the scrypt parameters"));
    }
    let log_n = params.n.trailing_zeros();
    let memory = params.n.saturating_mul(u64::from(params.r)).saturating_mul(128);
    if log_n > MAX_LOG_N || memory > MAX_MEMORY || params.p > MAX_P {
        return Err(KeystoreError::TooCostly);
    }
    let log_n = u8::try_from(log_n).map_err(|_| KeystoreError::TooCostly)?;
    let params = scrypt::Params::new(log_n, params.r, params.p, 32)
        .map_err(|_| KeystoreError::Unsupported("parameters outside scrypt's definition"))?;
    let mut derived = Zeroizing::new([0; 32]);
    scrypt::scrypt(passphrase.expose().as_bytes(), salt, &params, derived.as_mut_slice())
        .expect("32 bytes are a length that scrypt can derive");
    Ok(derived)
}

/// Encrypts and decrypts: the cipher is its own inverse. Its key is the first half of the derived bytes.
fn apply_cipher(derived: &[u8; 32], iv: &[u8; 16], data: &mut [u8]) {
    let (key, _) = derived.split_at(16);
    Ctr128BE::<Aes128>::new_from_slices(key, iv).expect("16 bytes each").apply_keystream(data);
}

/// The second half of the derived bytes and the ciphertext, hashed.
fn mac(derived: &[u8; 32], cipher_text: &[u8]) -> [u8; 32] {
    let (_, key) = derived.split_at(16);
    Keccak256::new().chain_update(key).chain_update(cipher_text).finalize().into()
}

fn same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |diff, (a, b)| diff | (a ^ b)) == 0
}

fn random<const N: usize>() -> Zeroizing<[u8; N]> {
    let mut bytes = Zeroizing::new([0; N]);
    OsRng.try_fill_bytes(bytes.as_mut_slice()).expect("the system always has random bytes");
    bytes
}

#[cfg(test)]
mod tests;
