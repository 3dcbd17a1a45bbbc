//! Which kinds of ICMP socket this process may open, and why: datagram sockets if `ping_group_range` contains one of
//! its groups, raw sockets with `CAP_NET_RAW`. The prober uses a datagram socket if it can open one, else a raw socket.
//!
//! The result is that of opening a socket. `ping_group_range`, the groups and the capabilities only explain it. The
//! range applies to IPv4 and IPv6.
//!
//! Source: Linux `icmp(7)`, `capabilities(7)`, `proc_pid_status(5)`.

use std::{io, ops::RangeInclusive, path::PathBuf};

use pingfleet_settings::shell_word;
use rustix::net::{AddressFamily, SocketType, ipproto, socket};

use super::{CheckResult, KernelFile, Unavailable, sysctl_command};

/// The range of groups that may open datagram ICMP sockets.
const RANGE: &str = "net.ipv4.ping_group_range";

/// Bit of `CAP_NET_RAW` (linux/capability.h).
const CAP_NET_RAW: u32 = 13;

/// The results of opening one socket of each kind.
struct OpenAttempts {
    datagram: io::Result<()>,
    raw: io::Result<()>,
}

/// The values that the kernel checks when a socket is opened.
struct Permissions {
    range: KernelFile,
    status: KernelFile,
    /// Path of the running program, for `setcap`.
    program: io::Result<PathBuf>,
}

/// IPv4, then IPv6.
pub(super) fn both() -> [CheckResult; 2] {
    let permissions = Permissions {
        range: KernelFile::sysctl(RANGE),
        status: KernelFile::file("/proc/self/status"),
        program: std::env::current_exe(),
    };
    combine([false, true].map(|v6| judge(&open_sockets(v6), &permissions)))
}

/// If one family works, a refusal of the other one is only poor.
fn combine(results: [CheckResult; 2]) -> [CheckResult; 2] {
    if !results
        .iter()
        .any(|one| matches!(one, CheckResult::Good(_)))
    {
        return results;
    }
    results.map(|result| match result {
        CheckResult::Bad { found, fix } => CheckResult::Poor { found, fix },
        other => other,
    })
}

fn open_sockets(v6: bool) -> OpenAttempts {
    let (family, protocol) = if v6 {
        (AddressFamily::INET6, ipproto::ICMPV6)
    } else {
        (AddressFamily::INET, ipproto::ICMP)
    };
    let open = |kind| match socket(family, kind, Some(protocol)) {
        Ok(_) => Ok(()),
        Err(error) => Err(io::Error::from(error)),
    };
    OpenAttempts {
        datagram: open(SocketType::DGRAM),
        raw: open(SocketType::RAW),
    }
}

fn judge(attempts: &OpenAttempts, permissions: &Permissions) -> CheckResult {
    let group = permissions.group();
    match (&attempts.datagram, &attempts.raw) {
        (Ok(()), _) => CheckResult::Good(match group {
            Ok(Some(group)) => format!("datagram sockets: ping_group_range has group {group}"),
            Ok(None) => {
                "datagram sockets, but no group of this user in ping_group_range".to_owned()
            }
            Err(unavailable) => format!("datagram sockets; {unavailable}"),
        }),
        (Err(error), Ok(())) => {
            let by = match permissions.has_capability(CAP_NET_RAW) {
                Ok(true) => " by CAP_NET_RAW",
                Ok(false) | Err(_) => "",
            };
            CheckResult::Good(match group {
                Ok(None) => format!("raw sockets{by}: no group in ping_group_range"),
                Ok(Some(_)) => format!("raw sockets{by}; datagram sockets: {}", reason(error)),
                Err(unavailable) => format!("raw sockets{by}; {unavailable}"),
            })
        }
        (Err(datagram), Err(_)) if is_no_family(datagram) => {
            CheckResult::NotShown("this kernel does not support it".to_owned())
        }
        (Err(datagram), Err(raw)) => match (group, permissions.program.as_ref()) {
            // If a group is in the range, something else refuses datagram sockets, such as a seccomp filter.
            (Ok(None), _) if is_refusal(datagram) => CheckResult::Bad {
                found: "refused: no group in ping_group_range, no CAP_NET_RAW".to_owned(),
                fix: sysctl_command(RANGE, "\"0 2147483647\""),
            },
            (_, Ok(program)) if is_refusal(raw) && !permissions.certainly_has_net_raw() => {
                CheckResult::Bad {
                    found: format!("no CAP_NET_RAW; datagram sockets: {}", reason(datagram)),
                    fix: format!("sudo setcap cap_net_raw+ep {}", shell_word(program)),
                }
            }
            _ => CheckResult::Bad {
                found: format!("no socket: {}", reason(raw)),
                fix: "check whether root has it: sudo pingfleet doctor".to_owned(),
            },
        },
    }
}

fn reason(error: &io::Error) -> String {
    if is_refusal(error) {
        "not permitted".to_owned()
    } else {
        error.to_string()
    }
}

/// EACCES or EPERM.
fn is_refusal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

fn is_no_family(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
}

impl Permissions {
    /// The first group of this process that is in the range.
    fn group(&self) -> Result<Option<u32>, Unavailable> {
        let range = self.range.parsed(parse_range)?;
        let groups = self.status.parsed(parse_groups)?;
        Ok(groups.into_iter().find(|group| range.contains(group)))
    }

    fn has_capability(&self, bit: u32) -> Result<bool, Unavailable> {
        let effective = self.status.parsed(parse_capabilities)?;
        Ok(effective >> bit & 1 == 1)
    }

    /// Whether the process has `CAP_NET_RAW`, so that `setcap` would not help. False if it is not known.
    fn certainly_has_net_raw(&self) -> bool {
        self.has_capability(CAP_NET_RAW) == Ok(true)
    }
}

/// `first last`. The kernel's default is `1 0`, an empty range.
fn parse_range(text: &str) -> Option<RangeInclusive<u32>> {
    let numbers: Vec<_> = text.split_ascii_whitespace().collect();
    let [first, last] = numbers[..] else {
        return None;
    };
    Some(first.parse().ok()?..=last.parse().ok()?)
}

/// The effective group (the second number after `Gid:`), then the supplementary groups.
fn parse_groups(status: &str) -> Option<Vec<u32>> {
    let effective = field(status, "Gid:")?.split_ascii_whitespace().nth(1)?;
    let others = field(status, "Groups:")?.split_ascii_whitespace();
    std::iter::once(effective)
        .chain(others)
        .map(|group| group.parse().ok())
        .collect()
}

fn parse_capabilities(status: &str) -> Option<u64> {
    u64::from_str_radix(field(status, "CapEff:")?.trim(), 16).ok()
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name))
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    const NOBODY: &str = "Name:\tx\nGid:\t0\t65534\t0\t0\nGroups:\t \nCapEff:\t0000000000000000\n";
    const ROOT: &str = "Gid:\t0\t0\t0\t0\nGroups:\t \nCapEff:\t000001ffffffffff\n";

    fn permissions(range: &str, status: &str) -> Permissions {
        Permissions {
            range: KernelFile::of(RANGE, range),
            status: KernelFile::of("/proc/self/status", status),
            program: Ok("/opt/pingfleet".into()),
        }
    }

    fn attempts(datagram: Result<(), Errno>, raw: Result<(), Errno>) -> OpenAttempts {
        OpenAttempts {
            datagram: datagram.map_err(Into::into),
            raw: raw.map_err(Into::into),
        }
    }

    fn good(text: &str) -> CheckResult {
        CheckResult::Good(text.to_owned())
    }

    #[test]
    fn a_datagram_socket_is_reported_with_the_group_that_allows_it() {
        let datagram = attempts(Ok(()), Err(Errno::PERM));
        for (range, status, text) in [
            (
                "0\t2147483647\n",
                NOBODY,
                "datagram sockets: ping_group_range has group 65534",
            ),
            // Only a supplementary group is in the range.
            (
                "27\t27\n",
                "Gid:\t5\t5\t5\t5\nGroups:\t4 27 30 \nCapEff:\t0\n",
                "datagram sockets: ping_group_range has group 27",
            ),
            (
                "1\t0\n",
                NOBODY,
                "datagram sockets, but no group of this user in ping_group_range",
            ),
            (
                "all\n",
                NOBODY,
                "datagram sockets; net.ipv4.ping_group_range reads \"all\"",
            ),
        ] {
            assert_eq!(judge(&datagram, &permissions(range, status)), good(text));
        }
        // The effective group counts, not the real group.
        let real = permissions("0\t0\n", NOBODY);
        assert_eq!(real.group(), Ok(None));
    }

    #[test]
    fn a_raw_socket_is_reported_with_what_allows_it_and_why_datagram_sockets_are_refused() {
        let raw = attempts(Err(Errno::ACCESS), Ok(()));
        assert_eq!(
            judge(&raw, &permissions("1\t0\n", ROOT)),
            good("raw sockets by CAP_NET_RAW: no group in ping_group_range")
        );
        assert_eq!(
            judge(&raw, &permissions("0\t0\n", ROOT)),
            good("raw sockets by CAP_NET_RAW; datagram sockets: not permitted")
        );
        let mut without_file = permissions("", "CapEff:\tnonsense\n");
        without_file.range = KernelFile::failed(RANGE, io::ErrorKind::NotFound);
        assert_eq!(
            judge(&raw, &without_file),
            good("raw sockets; net.ipv4.ping_group_range does not exist")
        );
    }

    #[test]
    fn the_fix_of_a_refusal_grants_what_is_missing() {
        let refused = attempts(Err(Errno::ACCESS), Err(Errno::PERM));
        let fix = |permissions: &Permissions| match judge(&refused, permissions) {
            CheckResult::Bad { fix, .. } => fix,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            fix(&permissions("1\t0\n", NOBODY)),
            "sudo sysctl -w net.ipv4.ping_group_range=\"0 2147483647\""
        );
        // The range is not the cause, so a wider one would not help.
        let capability = "sudo setcap cap_net_raw+ep /opt/pingfleet";
        assert_eq!(fix(&permissions("0\t2147483647\n", NOBODY)), capability);
        let mut without_file = permissions("", NOBODY);
        without_file.range = KernelFile::failed(RANGE, io::ErrorKind::NotFound);
        assert_eq!(fix(&without_file), capability);
        // Neither the range nor the capability is the cause.
        assert!(fix(&permissions("0\t2147483647\n", ROOT)).contains("sudo pingfleet doctor"));
        let full = attempts(Err(Errno::MFILE), Err(Errno::MFILE));
        assert!(matches!(
            judge(&full, &permissions("1\t0\n", NOBODY)),
            CheckResult::Bad { fix, .. } if fix.contains("sudo pingfleet doctor")
        ));
    }

    #[test]
    fn a_family_that_the_kernel_does_not_support_is_not_a_problem() {
        let absent = attempts(Err(Errno::AFNOSUPPORT), Err(Errno::AFNOSUPPORT));
        let result = judge(&absent, &permissions("1\t0\n", NOBODY));
        assert!(matches!(result, CheckResult::NotShown(_)), "{result:?}");
    }

    #[test]
    fn one_family_refused_is_poor_and_both_are_bad() {
        let bad = || CheckResult::Bad {
            found: String::new(),
            fix: String::new(),
        };
        assert!(matches!(
            combine([good("x"), bad()]),
            [CheckResult::Good(_), CheckResult::Poor { .. }]
        ));
        assert!(matches!(
            combine([bad(), bad()]),
            [CheckResult::Bad { .. }, CheckResult::Bad { .. }]
        ));
        let not_shown = CheckResult::NotShown(String::new());
        assert!(matches!(
            combine([bad(), not_shown])[0],
            CheckResult::Bad { .. }
        ));
    }

    #[test]
    fn malformed_files_give_no_group_and_no_capability() {
        for range in ["", "1", "0 1 2", "-1 5", "0 4294967296", "a b", "0\0 1"] {
            assert_eq!(parse_range(range), None, "{range:?}");
        }
        assert!(parse_range("4294967295 4294967295").is_some());
        for status in ["", "Gid:\n", "Gid:\t1\nGroups:\n", "Gid:\t0\t0\t0\t0\n"] {
            assert_eq!(parse_groups(status), None, "{status:?}");
        }
        assert_eq!(parse_groups("Gid:\t0\t7\t0\t0\nGroups:\t1 x\n"), None);
        for status in ["CapEff:\t", "CapEff:\t1ffffffffffffffff", "capeff: 1"] {
            assert_eq!(parse_capabilities(status), None, "{status:?}");
        }
    }
}
