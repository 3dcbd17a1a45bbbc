//! Which ICMP sockets this process gets, and by what: datagram ones where `ping_group_range` has one of its groups, raw
//! ones with `CAP_NET_RAW`. The prober takes the first kind that it gets, datagram before raw.
//!
//! Opening one is the truth; `ping_group_range` and the process's groups and capabilities explain it. The range is
//! that of both families.
//!
//! Source: Linux `icmp(7)`, `capabilities(7)`, `proc_pid_status(5)`.

use std::{io, ops::RangeInclusive, path::PathBuf};

use rustix::net::{AddressFamily, SocketType, ipproto, socket};

use super::{Finding, Reading, Silent, set};

/// The range of groups that may open datagram ICMP sockets.
const RANGE: &str = "net.ipv4.ping_group_range";

/// Bit of `CAP_NET_RAW` (linux/capability.h).
const CAP_NET_RAW: u32 = 13;

/// What opening one socket of each kind gave.
struct Tried {
    datagram: io::Result<()>,
    raw: io::Result<()>,
}

/// What the kernel goes by.
struct Grounds {
    range: Reading,
    status: Reading,
    /// The running program, for `setcap`.
    program: io::Result<PathBuf>,
}

/// IPv4, then IPv6.
pub(super) fn both() -> [Finding; 2] {
    let grounds = Grounds {
        range: Reading::setting(RANGE),
        status: Reading::file("/proc/self/status"),
        program: std::env::current_exe(),
    };
    weigh([false, true].map(|v6| judge(&try_kinds(v6), &grounds)))
}

/// One family that is refused still leaves the other one.
fn weigh(findings: [Finding; 2]) -> [Finding; 2] {
    if !findings.iter().any(|one| matches!(one, Finding::Good(_))) {
        return findings;
    }
    findings.map(|finding| match finding {
        Finding::Bad { found, mend } => Finding::Poor { found, mend },
        other => other,
    })
}

fn try_kinds(v6: bool) -> Tried {
    let (family, protocol) = if v6 {
        (AddressFamily::INET6, ipproto::ICMPV6)
    } else {
        (AddressFamily::INET, ipproto::ICMP)
    };
    let open = |kind| match socket(family, kind, Some(protocol)) {
        Ok(_) => Ok(()),
        Err(error) => Err(io::Error::from(error)),
    };
    Tried {
        datagram: open(SocketType::DGRAM),
        raw: open(SocketType::RAW),
    }
}

fn judge(tried: &Tried, grounds: &Grounds) -> Finding {
    let group = grounds.group();
    match (&tried.datagram, &tried.raw) {
        (Ok(()), _) => Finding::Good(match group {
            Ok(Some(group)) => format!("datagram sockets: ping_group_range has group {group}"),
            Ok(None) => "datagram sockets, though ping_group_range has no group of ours".to_owned(),
            Err(silent) => format!("datagram sockets; {silent}"),
        }),
        (Err(error), Ok(())) => {
            let by = match grounds.has_capability(CAP_NET_RAW) {
                Ok(true) => " by CAP_NET_RAW",
                Ok(false) | Err(_) => "",
            };
            Finding::Good(match group {
                Ok(None) => format!("raw sockets{by}: no group in ping_group_range"),
                Ok(Some(_)) => format!("raw sockets{by}; datagram ones: {}", said(error)),
                Err(silent) => format!("raw sockets{by}; {silent}"),
            })
        }
        (Err(datagram), Err(_)) if is_no_family(datagram) => {
            Finding::Untold("this kernel does not have it".to_owned())
        }
        (Err(datagram), Err(raw)) => match (group, grounds.program.as_ref()) {
            // With a group in the range, what refuses datagram sockets is something else: a filter of system calls.
            (Ok(None), _) if is_refusal(datagram) => Finding::Bad {
                found: "refused: no group in ping_group_range, no CAP_NET_RAW".to_owned(),
                mend: set(RANGE, "\"0 2147483647\""),
            },
            (_, Ok(program)) if is_refusal(raw) && !grounds.has_raw_for_certain() => Finding::Bad {
                found: format!("no CAP_NET_RAW; datagram ones: {}", said(datagram)),
                mend: format!("sudo setcap cap_net_raw+ep {}", program.display()),
            },
            _ => Finding::Bad {
                found: format!("no socket: {}", said(raw)),
                mend: "see whether root has it: sudo pingfleet doctor".to_owned(),
            },
        },
    }
}

fn said(error: &io::Error) -> String {
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

impl Grounds {
    /// The first group of this process that is in the range.
    fn group(&self) -> Result<Option<u32>, Silent> {
        let range = self.range.parsed(parse_range)?;
        let groups = self.status.parsed(parse_groups)?;
        Ok(groups.into_iter().find(|group| range.contains(group)))
    }

    fn has_capability(&self, bit: u32) -> Result<bool, Silent> {
        let effective = self.status.parsed(parse_capabilities)?;
        Ok(effective >> bit & 1 == 1)
    }

    /// `CAP_NET_RAW` is there, so that granting it mends nothing.
    fn has_raw_for_certain(&self) -> bool {
        self.has_capability(CAP_NET_RAW) == Ok(true)
    }
}

/// `first last`; nobody is in the kernel's own default, `1 0`.
fn parse_range(text: &str) -> Option<RangeInclusive<u32>> {
    let numbers: Vec<_> = text.split_ascii_whitespace().collect();
    let [first, last] = numbers[..] else {
        return None;
    };
    Some(first.parse().ok()?..=last.parse().ok()?)
}

/// The effective group (the second of `Gid:`), then the supplementary ones.
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

    fn grounds(range: &str, status: &str) -> Grounds {
        Grounds {
            range: Reading::of(RANGE, range),
            status: Reading::of("/proc/self/status", status),
            program: Ok("/opt/pingfleet".into()),
        }
    }

    fn tried(datagram: Result<(), Errno>, raw: Result<(), Errno>) -> Tried {
        Tried {
            datagram: datagram.map_err(Into::into),
            raw: raw.map_err(Into::into),
        }
    }

    fn good(text: &str) -> Finding {
        Finding::Good(text.to_owned())
    }

    #[test]
    fn a_datagram_socket_is_told_with_the_group_that_gives_it() {
        let datagram = tried(Ok(()), Err(Errno::PERM));
        for (range, status, text) in [
            (
                "0\t2147483647\n",
                NOBODY,
                "datagram sockets: ping_group_range has group 65534",
            ),
            // By a supplementary group alone.
            (
                "27\t27\n",
                "Gid:\t5\t5\t5\t5\nGroups:\t4 27 30 \nCapEff:\t0\n",
                "datagram sockets: ping_group_range has group 27",
            ),
            (
                "1\t0\n",
                NOBODY,
                "datagram sockets, though ping_group_range has no group of ours",
            ),
            (
                "all\n",
                NOBODY,
                "datagram sockets; net.ipv4.ping_group_range reads \"all\"",
            ),
        ] {
            assert_eq!(judge(&datagram, &grounds(range, status)), good(text));
        }
        // The real group does not count, only the effective one.
        let real = grounds("0\t0\n", NOBODY);
        assert_eq!(real.group(), Ok(None));
    }

    #[test]
    fn a_raw_socket_is_told_with_what_gives_it_and_why_it_is_no_datagram_one() {
        let raw = tried(Err(Errno::ACCESS), Ok(()));
        assert_eq!(
            judge(&raw, &grounds("1\t0\n", ROOT)),
            good("raw sockets by CAP_NET_RAW: no group in ping_group_range")
        );
        assert_eq!(
            judge(&raw, &grounds("0\t0\n", ROOT)),
            good("raw sockets by CAP_NET_RAW; datagram ones: not permitted")
        );
        let mut without_file = grounds("", "CapEff:\tnonsense\n");
        without_file.range = Reading::failed(RANGE, io::ErrorKind::NotFound);
        assert_eq!(
            judge(&raw, &without_file),
            good("raw sockets; net.ipv4.ping_group_range is not there")
        );
    }

    #[test]
    fn a_refusal_is_mended_by_what_is_missing() {
        let refused = tried(Err(Errno::ACCESS), Err(Errno::PERM));
        let mend = |grounds: &Grounds| match judge(&refused, grounds) {
            Finding::Bad { mend, .. } => mend,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            mend(&grounds("1\t0\n", NOBODY)),
            "sudo sysctl -w net.ipv4.ping_group_range=\"0 2147483647\""
        );
        // The range is not what refuses: widening it would mend nothing.
        let capability = "sudo setcap cap_net_raw+ep /opt/pingfleet";
        assert_eq!(mend(&grounds("0\t2147483647\n", NOBODY)), capability);
        let mut without_file = grounds("", NOBODY);
        without_file.range = Reading::failed(RANGE, io::ErrorKind::NotFound);
        assert_eq!(mend(&without_file), capability);
        // Neither is what refuses.
        assert!(mend(&grounds("0\t2147483647\n", ROOT)).contains("sudo pingfleet doctor"));
        let full = tried(Err(Errno::MFILE), Err(Errno::MFILE));
        assert!(matches!(
            judge(&full, &grounds("1\t0\n", NOBODY)),
            Finding::Bad { mend, .. } if mend.contains("sudo pingfleet doctor")
        ));
    }

    #[test]
    fn a_family_that_the_kernel_does_not_have_is_no_fault_of_the_box() {
        let absent = tried(Err(Errno::AFNOSUPPORT), Err(Errno::AFNOSUPPORT));
        let finding = judge(&absent, &grounds("1\t0\n", NOBODY));
        assert!(matches!(finding, Finding::Untold(_)), "{finding:?}");
    }

    #[test]
    fn one_family_refused_is_poor_and_both_are_bad() {
        let bad = || Finding::Bad {
            found: String::new(),
            mend: String::new(),
        };
        assert!(matches!(
            weigh([good("x"), bad()]),
            [Finding::Good(_), Finding::Poor { .. }]
        ));
        assert!(matches!(
            weigh([bad(), bad()]),
            [Finding::Bad { .. }, Finding::Bad { .. }]
        ));
        let untold = Finding::Untold(String::new());
        assert!(matches!(weigh([bad(), untold])[0], Finding::Bad { .. }));
    }

    #[test]
    fn hostile_contents_give_no_group_and_no_capability() {
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
