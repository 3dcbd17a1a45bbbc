//! Whether the reverse path filter may drop replies: in strict mode the kernel drops an IPv4 message that comes by another
//! interface than the one by which its sender is reached (RFC 3704). With one interface there is no other.
//!
//! Source: Linux `Documentation/networking/ip-sysctl.rst` (`rp_filter`: the larger value of `all` and of the interface counts).

use std::fs;

use super::{CheckResult, KernelFile, sysctl_command};

/// Strict mode. 0 is off, 2 is loose: any route back is enough.
const STRICT: u64 = 1;

/// Folders that are no interfaces, and the loopback interface.
const OTHERS: [&str; 3] = ["all", "default", "lo"];

pub(super) fn check() -> CheckResult {
    let all = match KernelFile::sysctl("net.ipv4.conf.all.rp_filter").number() {
        Ok(all) => all,
        Err(unavailable) => return unavailable.into(),
    };
    let names = match fs::read_dir("/proc/sys/net/ipv4/conf") {
        Ok(entries) => entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()),
        Err(error) => return CheckResult::NotShown(error.to_string()),
    };
    let mut names: Vec<_> = names.filter(|name| !OTHERS.contains(&&name[..])).collect();
    names.sort();
    let interfaces = names.into_iter().filter_map(|name| {
        // The name of an interface may contain a dot, and one may be removed meanwhile.
        let path = format!("/proc/sys/net/ipv4/conf/{name}/rp_filter");
        let value = KernelFile::file(&path).number().ok()?;
        Some((name, value))
    });
    judge(all, &interfaces.collect::<Vec<_>>())
}

fn judge(all: u64, interfaces: &[(String, u64)]) -> CheckResult {
    let strict = interfaces.iter().filter(|(_, own)| all.max(*own) == STRICT);
    let strict: Vec<_> = strict.map(|(name, _)| name.as_str()).collect();
    if strict.is_empty() || interfaces.len() == 1 {
        return CheckResult::Good("drops no reply".to_owned());
    }
    CheckResult::Poor {
        found: format!(
            "strict on {}: a reply that comes by another interface is dropped",
            strict.join(", ")
        ),
        fix: sysctl_command("net.ipv4.conf.all.rp_filter", 2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(all: u64, interfaces: &[(&str, u64)]) -> CheckResult {
        let interfaces = interfaces
            .iter()
            .map(|(name, own)| ((*name).to_owned(), *own));
        judge(all, &interfaces.collect::<Vec<_>>())
    }

    #[test]
    fn strict_mode_with_several_interfaces_is_poor() {
        let good = |result| matches!(result, CheckResult::Good(_));
        assert!(good(check(0, &[("eth0", 0), ("eth1", 0)])));
        assert!(good(check(2, &[("eth0", 1), ("eth1", 0)])));
        assert!(good(check(1, &[("eth0", 1)])));
        assert!(good(check(1, &[("eth0", 2), ("eth1", 2)])));
        let poor = check(0, &[("eth0", 1), ("eth1", 0), ("wlan0", 1)]);
        let expected = CheckResult::Poor {
            found: "strict on eth0, wlan0: a reply that comes by another interface is dropped"
                .to_owned(),
            fix: "sudo sysctl -w net.ipv4.conf.all.rp_filter=2".to_owned(),
        };
        assert_eq!(poor, expected);
        assert!(!good(check(1, &[("eth0", 0), ("eth1", 0)])));
    }
}
