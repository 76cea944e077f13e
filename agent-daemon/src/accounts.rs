//! Users and groups of the machine, from `/etc/passwd` and `/etc/group`.

use std::fs;

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// User id.
    pub uid: u32,
    /// Main group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
}

/// The account of a user's name, of a user id, or of `uid:gid`.
///
/// # Errors
/// A sentence for people when there is no such user.
pub fn account(user: &str) -> Result<Account, String> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let group = fs::read_to_string("/etc/group").unwrap_or_default();
    find(user, &passwd, &group).ok_or_else(|| format!("there is no user `{user}` on this machine"))
}

fn find(user: &str, passwd: &str, group: &str) -> Option<Account> {
    let lines = || passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let listed = lines()
        .find(|fields| fields.len() >= 6 && (fields.first() == Some(&user) || fields.get(2) == Some(&user)));
    if let Some(fields) = listed {
        let name = *fields.first()?;
        return Some(Account {
            uid: fields.get(2)?.parse().ok()?,
            gid: fields.get(3)?.parse().ok()?,
            groups: groups_of(name, group),
            home: (*fields.get(5)?).to_owned(),
        });
    }
    let (uid, gid) = user.split_once(':').unwrap_or((user, user));
    Some(Account { uid: uid.parse().ok()?, gid: gid.parse().ok()?, groups: Vec::new(), home: "/".to_owned() })
}

fn groups_of(name: &str, group: &str) -> Vec<u32> {
    group
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .filter(|fields| fields.get(3).is_some_and(|members| members.split(',').any(|member| member == name)))
        .filter_map(|fields| fields.get(2)?.parse().ok())
        .collect()
}

/// Home directory of a user id, `/` when it is not listed.
pub fn home_of(uid: u32) -> String {
    account(&uid.to_string()).map_or_else(|_| "/".to_owned(), |account| account.home)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbot:x:1001:1002:,,,:/home/bot:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nvideo:x:44:bot,eve\naudio:x:29:eve\n";

    #[test]
    fn names_and_ids_are_found() {
        let bot = Account { uid: 1001, gid: 1002, groups: vec![44], home: "/home/bot".to_owned() };
        assert_eq!(find("bot", PASSWD, GROUP), Some(bot.clone()));
        assert_eq!(find("1001", PASSWD, GROUP), Some(bot));
        let free = Account { uid: 4000, gid: 4001, groups: Vec::new(), home: "/".to_owned() };
        assert_eq!(find("4000:4001", PASSWD, GROUP), Some(free));
        assert_eq!(find("nobody-here", PASSWD, GROUP), None);
    }
}
