//! The script of a new server, and the one for people's own machines (`deploy/cloud-init.yaml`), run for real in a
//! directory of their own.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use otonix_control_plane::service::purchases::bootstrap::{Package, script};
use otonix_sdk::secret::Secret;
use sha2::{Digest as _, Sha256};

/// A daemon that only says what it was told.
const DAEMON: &str = "#!/bin/sh\necho \"$@ token=$OTONIX_ENROL\" >>\"$OTONIX_ROOT/said\"\n";
const OWN: &str = "#!/bin/sh\necho own >>\"$OTONIX_ROOT/said\"\n";

/// Serves one file for ever; its address.
fn serve(content: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port on this machine");
    let url = format!("http://{}/otonix-agent", listener.local_addr().expect("a socket"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let mut head = [0; 4096];
            let _asked = stream.read(&mut head);
            let length = content.len();
            let _sent = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{content}");
        }
    });
    url
}

/// Runs a script; whether it ended well, and what was said, line by line.
fn run(root: &Path, text: &Secret) -> (bool, Vec<String>) {
    let file = root.join("script");
    fs::write(&file, text.expose()).expect("our directory");
    let status = Command::new("bash").arg(&file).env("OTONIX_ROOT", root).status().expect("there is a bash");
    // The daemon is started in the background.
    for _ in 0..200 {
        let said = fs::read_to_string(root.join("said")).unwrap_or_default();
        if said.contains("own") && (!status.success() || said.contains(" run ")) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let said = fs::read_to_string(root.join("said")).unwrap_or_default();
    (status.success(), said.lines().map(str::to_owned).collect())
}

#[test]
fn the_daemon_is_installed_enrolled_and_started_then_the_buyer_s_script_runs() {
    let root = tempfile::tempdir().expect("a directory");
    let sha256 = hex::encode(Sha256::digest(DAEMON));
    let package = Package { url: serve(DAEMON), sha256 };
    let token = Secret::new("otonix_enrol_x".to_owned());
    let text = script(&package, "https://cp.example", &token, Some(OWN));
    let (well, mut said) = run(root.path(), &text);
    said.sort();
    let state = root.path().join("var/lib/otonix-agent");
    let state = state.display();
    assert!(well, "{said:?}");
    assert_eq!(
        said,
        [
            format!("--state-dir {state} init --server https://cp.example token=otonix_enrol_x"),
            format!("--state-dir {state} run token="),
            "own".to_owned(),
        ]
    );
    let mode =
        fs::metadata(root.path().join("usr/bin/otonix-agent")).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
}

#[test]
fn another_package_than_the_one_expected_is_never_run() {
    let root = tempfile::tempdir().expect("a directory");
    let package = Package { url: serve(DAEMON), sha256: "0".repeat(64) };
    let text = script(&package, "https://cp.example", &Secret::new("t".to_owned()), Some(OWN));
    let (well, said) = run(root.path(), &text);
    assert_eq!((well, said), (false, vec!["own".to_owned()]));
    assert!(!root.path().join("usr/bin/otonix-agent").exists());
}

/// Programs that are found before the machine's own.
fn tools(root: &Path, programs: &[(&str, &str)]) {
    let dir = root.join("tools");
    fs::create_dir_all(&dir).expect("our directory");
    for (name, script) in programs {
        fs::write(dir.join(name), script).expect("our directory");
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o755)).expect("our file");
    }
}

/// Runs a script as a machine does, with these programs.
fn started(root: &Path, shell: &str, text: &str) -> Output {
    let file = root.join("script");
    fs::write(&file, text).expect("our directory");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("our file");
    let path = format!("{0}/tools:{0}/usr/bin:/usr/bin:/bin", root.display());
    let mut command = Command::new(shell);
    command.arg(&file).env_clear().env("PATH", path).env("OTONIX_ROOT", root);
    command.output().expect("there is a shell")
}

/// Every file below that holds a text: its path and mode.
fn holders(dir: &Path, text: &str) -> Vec<(String, u32)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("our directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(holders(&path, text));
        } else if String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).contains(text) {
            let mode = fs::metadata(&path).expect("it is there").permissions().mode() & 0o777;
            found.push((path.display().to_string(), mode));
        }
    }
    found
}

fn said(root: &Path, name: &str) -> String {
    fs::read_to_string(root.join(name)).unwrap_or_default()
}

/// Fails twice, then writes what the test has put aside; says what it was asked.
const CURL: &str = r#"#!/bin/sh
echo "curl $*" >>"$OTONIX_ROOT/asked"
[ "$(wc -l <"$OTONIX_ROOT/asked")" -gt 2 ] || exit 7
while [ $# -gt 0 ]; do
    case $1 in -o | --output) cp "$OTONIX_ROOT/package" "$2" ;; esac
    shift
done
"#;
const SLEEP: &str = "#!/bin/sh\necho \"$1\" >>\"$OTONIX_ROOT/slept\"\n";
const SYSTEMCTL: &str = "#!/bin/sh\necho \"systemctl $*\" >>\"$OTONIX_ROOT/managed\"\n";
/// Fails twice; says its arguments, and whether it has a token.
const STUBBORN: &str = r#"#!/bin/sh
echo "$@ ${OTONIX_ENROL:+with a token}" >>"$OTONIX_ROOT/said"
[ "$(wc -l <"$OTONIX_ROOT/said")" -gt 2 ]
"#;

#[test]
fn the_first_start_is_patient_and_its_token_is_seen_by_nobody() {
    let root = tempfile::tempdir().expect("a directory");
    let root = root.path();
    fs::write(root.join("package"), STUBBORN).expect("our directory");
    tools(root, &[("curl", CURL), ("sleep", SLEEP), ("systemctl", SYSTEMCTL)]);
    for dir in ["run/systemd/system", "etc/systemd/system"] {
        fs::create_dir_all(root.join(dir)).expect("our directory");
    }
    let sha256 = hex::encode(Sha256::digest(STUBBORN));
    let package = Package { url: "https://packages.example/otonix-agent".to_owned(), sha256 };
    let own = "#!/bin/sh\nenv >\"$OTONIX_ROOT/own\"\nps -eo args >>\"$OTONIX_ROOT/own\"\n";
    let secret = "otonix_enrol_secret";
    let text = script(&package, "https://cp.example", &Secret::new(secret.to_owned()), Some(own));
    let output = started(root, "bash", text.expose());
    assert!(output.status.success(), "{output:?}");
    // Both the download and the enrolment were tried three times, with pauses.
    assert_eq!(said(root, "asked").lines().count(), 3);
    let init =
        format!("--state-dir {}/var/lib/otonix-agent init --server https://cp.example", root.display());
    assert_eq!(said(root, "said"), format!("{init} with a token\n").repeat(3));
    assert_eq!(said(root, "slept"), "2\n4\n2\n4\n");
    assert_eq!(said(root, "managed"), "systemctl daemon-reload\nsystemctl enable --now otonix-agent\n");
    let unit = root.join("etc/systemd/system/otonix-agent.service");
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/systemd/otonix-agent.service");
    let (unit, shipped) = (fs::read_to_string(unit), fs::read_to_string(shipped));
    assert_eq!(unit.expect("it is there").trim(), shipped.expect("it is there").trim());
    // The buyer's part came last and saw nothing of it; nobody's arguments, output or file has it.
    assert!(said(root, "own").contains("OTONIX_ROOT="), "the buyer's part ran");
    let spoken = [output.stdout, output.stderr].concat();
    assert!(!String::from_utf8_lossy(&spoken).contains(secret));
    assert_eq!(holders(root, secret), [(root.join("script").display().to_string(), 0o600)]);
    let own = root.join("var/lib/otonix-own/user-data");
    assert_eq!(fs::metadata(own).expect("it is there").permissions().mode() & 0o777, 0o700);
}

/// A file that the user data writes, in a directory in place of the root.
fn written(name: &str, root: &Path) -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/cloud-init.yaml");
    let whole = fs::read_to_string(path).expect("it is shipped");
    let (_, rest) = whole.split_once(&format!("- path: {name}\n")).expect("it writes the file");
    let (_, rest) = rest.split_once("content: |\n").expect("it has a content");
    let lines = rest.lines().take_while(|line| line.is_empty() || line.starts_with("      "));
    let text: String = lines.map(|line| format!("{}\n", line.get(6..).unwrap_or_default())).collect();
    let root = root.display().to_string();
    ["/usr/bin/otonix-agent", "/var/lib/otonix-agent", "/etc/otonix-agent/"]
        .iter()
        .fold(text, |text, path| text.replace(path, &format!("{root}{path}")))
}

/// A machine with the files of the user data, filled in.
fn own_machine(root: &Path, sha256: &str) -> String {
    fs::write(root.join("package"), STUBBORN).expect("our directory");
    let found = "#!/bin/sh\nexit 1\n";
    let user = "#!/bin/sh\necho \"useradd $*\" >>\"$OTONIX_ROOT/managed\"\n";
    // Repeats are curl's own here.
    let curl = CURL.replace("-gt 2 ", "-gt 0 ");
    tools(
        root,
        &[("curl", &curl), ("sleep", SLEEP), ("systemctl", SYSTEMCTL), ("id", found), ("useradd", user)],
    );
    for dir in ["usr/bin", "var/lib", "etc/otonix-agent"] {
        fs::create_dir_all(root.join(dir)).expect("our directory");
    }
    let enrol = written("/etc/otonix-agent/enrol.env", root);
    let enrol = enrol.replace("=SERVER", "=https://cp.example").replace("=TOKEN", "=otonix_enrol_secret");
    let file = root.join("etc/otonix-agent/enrol.env");
    fs::write(&file, enrol).expect("our directory");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("our file");
    let setup = written("/usr/local/sbin/otonix-agent-setup", root);
    setup.replace("PACKAGE_URL", "https://packages.example/otonix-agent").replace("PACKAGE_SHA256", sha256)
}

#[test]
fn a_machine_of_one_s_own_is_set_up_and_set_up_again() {
    let root = tempfile::tempdir().expect("a directory");
    let root = root.path();
    let setup = own_machine(root, &hex::encode(Sha256::digest(STUBBORN)));
    for _ in 0..2 {
        let output = started(root, "sh", &setup);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(holders(root, "otonix_enrol_secret"), []);
    }
    let init = format!("--state-dir {}/var/lib/otonix-agent init with a token\n", root.display());
    assert_eq!(said(root, "said"), init.repeat(3), "enrolled once, at the third try");
    assert_eq!(said(root, "asked").lines().count(), 1, "downloaded once");
    let user = "useradd --system --create-home --shell /usr/sbin/nologin otonix-work\n";
    let service = "systemctl daemon-reload\nsystemctl enable --now otonix-agent\n";
    assert_eq!(said(root, "managed"), format!("{user}{service}").repeat(2));
}

#[test]
fn a_machine_of_one_s_own_runs_no_other_package_and_the_shipped_unit() {
    let root = tempfile::tempdir().expect("a directory");
    let root = root.path();
    let setup = own_machine(root, &"0".repeat(64));
    assert!(!started(root, "sh", &setup).status.success());
    assert!(!root.join("usr/bin/otonix-agent").exists());
    assert_eq!((said(root, "said"), said(root, "managed")), (String::new(), String::new()));
    let directives = |text: &str| -> Vec<String> {
        let is_one =
            |line: &&str| !line.is_empty() && !line.starts_with('#') && !line.starts_with("Documentation");
        text.lines().map(str::trim).filter(is_one).map(str::to_owned).collect()
    };
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/systemd/otonix-agent.service");
    let shipped = fs::read_to_string(shipped).expect("it is there");
    let mut own = directives(&written("/etc/systemd/system/otonix-agent.service", Path::new("")));
    own.retain(|line| line != "Environment=OTONIX_AGENT_USER=otonix-work");
    assert_eq!(own, directives(&shipped));
}
