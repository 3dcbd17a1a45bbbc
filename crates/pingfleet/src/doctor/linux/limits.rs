//! Kernel limits: socket buffers, tracked connections, open files.
//!
//! Source: Linux `socket(7)`, `proc_pid_limits(5)`, the kernel's `nf_conntrack-sysctl.rst`.

use std::io;

use pingfleet_settings::FILES_FOR_PROBING;
use rustix::net::{AddressFamily, SocketType, socket, sockopt};

use super::{CheckResult, DEFAULT_RATE, KernelFile, Unavailable, grouped, sysctl_command};

/// One of the two buffers of a socket.
struct BufferLimit {
    /// The `sysctl` limit for processes without `CAP_NET_ADMIN`.
    setting: &'static str,
    /// Bytes that the prober asks for.
    wanted: u64,
    /// Bytes that are enough for a large sweep.
    enough: u64,
    /// What happens with less.
    otherwise: &'static str,
}

/// Holds replies that are not read yet. 16 MiB hold the replies of a few seconds.
const RECEIVE: BufferLimit = BufferLimit {
    setting: "net.core.rmem_max",
    wanted: 64 << 20,
    enough: 16 << 20,
    otherwise: "a burst of replies may not fit",
};

/// Requests that wait for the link address of a neighbour count against it. A dead neighbour holds them for seconds.
const SEND: BufferLimit = BufferLimit {
    setting: "net.core.wmem_max",
    wanted: 4 << 20,
    enough: 4 << 20,
    otherwise: "dead neighbours delay the others",
};

/// The buffer that the kernel granted.
#[derive(Clone, Copy)]
struct Granted {
    /// Bytes, without the kernel's overhead.
    bytes: u64,
    /// Whether it may exceed the `sysctl` limit, which needs `CAP_NET_ADMIN`.
    forced: bool,
}

/// Seconds that conntrack keeps the entry of a ping: the kernel's default, used if the setting cannot be read.
const DEFAULT_CONNTRACK_TIMEOUT: u64 = 30;

/// A sweep of names with four probing threads and 100 outstanding queries had 205 open files when measured. A thread
/// keeps up to 16 sockets if runs differ in source, interface or TTL. A name ends as `dns_failed` if there is no socket
/// for its query.
const ENOUGH_FILES: u64 = 512;

/// The limit that the fix sets: the usual default of Linux.
const USUAL_FILES: u64 = 1024;

pub(super) fn receive_buffer() -> CheckResult {
    let granted = request_buffer(RECEIVE.wanted, |socket, bytes| {
        let forced = sockopt::set_socket_recv_buffer_size_force(socket, bytes).is_ok();
        if !forced {
            sockopt::set_socket_recv_buffer_size(socket, bytes)?;
        }
        Ok((sockopt::socket_recv_buffer_size(socket)?, forced))
    });
    judge_buffer(&RECEIVE, &KernelFile::sysctl(RECEIVE.setting), granted)
}

pub(super) fn send_buffer() -> CheckResult {
    let granted = request_buffer(SEND.wanted, |socket, bytes| {
        let forced = sockopt::set_socket_send_buffer_size_force(socket, bytes).is_ok();
        if !forced {
            sockopt::set_socket_send_buffer_size(socket, bytes)?;
        }
        Ok((sockopt::socket_send_buffer_size(socket)?, forced))
    });
    judge_buffer(&SEND, &KernelFile::sysctl(SEND.setting), granted)
}

/// Asks for a buffer on a UDP socket, which everybody may open. The limits are the same for all kinds of socket.
fn request_buffer(
    wanted: u64,
    ask: impl FnOnce(&rustix::fd::OwnedFd, usize) -> rustix::io::Result<(usize, bool)>,
) -> io::Result<Granted> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let (bytes, forced) = ask(&socket, wanted as usize)?;
    // The kernel doubles the value that is set, for its own overhead (socket(7)).
    let bytes = bytes as u64 / 2;
    Ok(Granted { bytes, forced })
}

fn judge_buffer(
    buffer: &BufferLimit,
    limit: &KernelFile,
    granted: io::Result<Granted>,
) -> CheckResult {
    let setting = buffer.setting;
    let bytes = match (granted, limit.number()) {
        (Ok(Granted { bytes, forced }), _) if forced && bytes >= buffer.enough => {
            let granted = size(bytes);
            return CheckResult::Good(format!("{granted}: CAP_NET_ADMIN overrides {setting}"));
        }
        // The granted size decides, not the setting: a sandbox may emulate the kernel.
        (Ok(Granted { bytes, .. }), _) => bytes,
        (Err(_), Ok(limit)) => limit,
        (Err(_), Err(unavailable)) => return unavailable.into(),
    };
    if bytes >= buffer.enough {
        return CheckResult::Good(format!("{}, allowed by {setting}", size(bytes)));
    }
    CheckResult::Poor {
        found: format!("at most {}: {}", size(bytes), buffer.otherwise),
        fix: sysctl_command(setting, buffer.wanted),
    }
}

fn size(bytes: u64) -> String {
    if bytes >= 1 << 20 {
        format!("{} MiB", bytes >> 20)
    } else {
        format!("{} KiB", bytes >> 10)
    }
}

pub(super) fn conntrack() -> CheckResult {
    let [most, count, lifetime] = ["max", "count", "icmp_timeout"]
        .map(|name| KernelFile::sysctl(&format!("net.netfilter.nf_conntrack_{name}")));
    judge_conntrack(&most, &count, &lifetime)
}

/// Every ping is an entry for half a minute. If the table is full, packets are dropped silently.
fn judge_conntrack(most: &KernelFile, count: &KernelFile, lifetime: &KernelFile) -> CheckResult {
    let limit = match most.number() {
        // 0 means no limit.
        Ok(0) => return CheckResult::Good("no limit".to_owned()),
        Ok(limit) => limit,
        Err(Unavailable::Missing { .. }) => {
            return CheckResult::NotShown("nf_conntrack is not loaded".to_owned());
        }
        Err(unavailable) => return unavailable.into(),
    };
    let count = match count.number() {
        Ok(count) => count,
        Err(unavailable) => return unavailable.into(),
    };
    let lifetime = lifetime
        .number()
        .unwrap_or(DEFAULT_CONNTRACK_TIMEOUT)
        .max(1);
    let free = limit.saturating_sub(count);
    let rate = free / lifetime;
    let found = format!(
        "allows {} requests/s: {} of {} entries free",
        grouped(rate),
        grouped(free),
        grouped(limit)
    );
    if rate >= DEFAULT_RATE {
        return CheckResult::Good(found);
    }
    let needed = count + DEFAULT_RATE * lifetime;
    CheckResult::Poor {
        found,
        fix: sysctl_command(&most.name, needed.next_power_of_two()),
    }
}

pub(super) fn open_files() -> CheckResult {
    judge_files(&KernelFile::file("/proc/self/limits"))
}

fn judge_files(limits: &KernelFile) -> CheckResult {
    let [soft, hard] = match limits.parsed(parse_files) {
        Ok(limits) => limits,
        Err(unavailable) => return unavailable.into(),
    };
    let limit = grouped(soft);
    if soft == u64::MAX {
        return CheckResult::Good("no limit".to_owned());
    }
    if soft >= ENOUGH_FILES {
        return CheckResult::Good(format!(
            "up to {limit}; a sweep of names may need {ENOUGH_FILES}"
        ));
    }
    let fix = if hard >= USUAL_FILES {
        format!("ulimit -n {USUAL_FILES}; for a service LimitNOFILE={USUAL_FILES}")
    } else {
        format!("sudo prlimit -n{USUAL_FILES}:{USUAL_FILES} -p $$; for a service LimitNOFILE=")
            + &USUAL_FILES.to_string()
    };
    if soft < FILES_FOR_PROBING {
        return CheckResult::Bad {
            found: format!("at most {limit}: a sweep needs {FILES_FOR_PROBING} to start"),
            fix,
        };
    }
    CheckResult::Poor {
        found: format!("at most {limit}: a sweep of names may need {ENOUGH_FILES}"),
        fix,
    }
}

/// The soft and the hard limit; `u64::MAX` if there is none.
fn parse_files(limits: &str) -> Option<[u64; 2]> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files "))?;
    let number = |text: &str| match text {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    };
    let mut fields = line.split_ascii_whitespace();
    Some([number(fields.next()?)?, number(fields.next()?)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(bytes: u64, forced: bool) -> Granted {
        Granted { bytes, forced }
    }

    fn poor(found: &str, fix: &str) -> CheckResult {
        CheckResult::Poor {
            found: found.to_owned(),
            fix: fix.to_owned(),
        }
    }

    #[test]
    fn a_small_buffer_is_poor_unless_the_capability_overrides_the_limit() {
        let limit = KernelFile::of(RECEIVE.setting, "212992\n");
        assert_eq!(
            judge_buffer(&RECEIVE, &limit, Ok(granted(212_992, false))),
            poor(
                "at most 208 KiB: a burst of replies may not fit",
                "sudo sysctl -w net.core.rmem_max=67108864"
            )
        );
        assert_eq!(
            judge_buffer(&RECEIVE, &limit, Ok(granted(64 << 20, true))),
            CheckResult::Good("64 MiB: CAP_NET_ADMIN overrides net.core.rmem_max".to_owned())
        );
        assert_eq!(
            judge_buffer(&SEND, &limit, Ok(granted(212_992, false))),
            poor(
                "at most 208 KiB: dead neighbours delay the others",
                "sudo sysctl -w net.core.wmem_max=4194304"
            )
        );
        // Exactly the size that the prober asks for is enough.
        for (bytes, enough) in [((4 << 20) - 1, false), (4 << 20, true)] {
            let result = judge_buffer(&SEND, &limit, Ok(granted(bytes, false)));
            assert_eq!(
                matches!(result, CheckResult::Good(_)),
                enough,
                "{bytes}: {result:?}"
            );
        }
    }

    #[test]
    fn without_the_setting_the_socket_decides_and_nothing_is_guessed() {
        let hidden = KernelFile::failed(RECEIVE.setting, io::ErrorKind::NotFound);
        assert_eq!(
            judge_buffer(&RECEIVE, &hidden, Ok(granted(64 << 20, false))),
            CheckResult::Good("64 MiB, allowed by net.core.rmem_max".to_owned())
        );
        let refused = || Err(io::ErrorKind::PermissionDenied.into());
        assert_eq!(
            judge_buffer(&RECEIVE, &hidden, refused()),
            CheckResult::NotShown("net.core.rmem_max does not exist".to_owned())
        );
        let odd = KernelFile::of(RECEIVE.setting, "-1\n");
        assert_eq!(
            judge_buffer(&RECEIVE, &odd, refused()),
            CheckResult::NotShown("net.core.rmem_max reads \"-1\"".to_owned())
        );
        let small = KernelFile::of(RECEIVE.setting, "4096\n");
        let result = judge_buffer(&RECEIVE, &small, refused());
        assert!(
            matches!(result, CheckResult::Poor { found, .. } if found.contains("at most 4 KiB"))
        );
    }

    fn track(most: &str, count: &str, lifetime: &str) -> CheckResult {
        let of = |name: &str, text: &str| {
            KernelFile::of(&format!("net.netfilter.nf_conntrack_{name}"), text)
        };
        judge_conntrack(
            &of("max", most),
            &of("count", count),
            &of("icmp_timeout", lifetime),
        )
    }

    #[test]
    fn conntrack_allows_the_rate_for_which_its_free_entries_last() {
        assert_eq!(
            track("262144\n", "100\n", "30\n"),
            CheckResult::Good(
                "allows 8,734 requests/s: 262,044 of 262,144 entries free".to_owned()
            )
        );
        assert!(matches!(track("30000", "0", "30"), CheckResult::Good(_)));
        assert_eq!(
            track("65536", "35537", "30"),
            poor(
                "allows 999 requests/s: 29,999 of 65,536 entries free",
                "sudo sysctl -w net.netfilter.nf_conntrack_max=131072"
            )
        );
        assert!(matches!(
            track("30000", "0", "60"),
            CheckResult::Poor { .. }
        ));
        // The fix is enough.
        assert!(matches!(
            track("131072", "35537", "30"),
            CheckResult::Good(_)
        ));
    }

    #[test]
    fn unusual_conntrack_values_do_not_overflow_and_nothing_is_guessed() {
        assert!(matches!(track("0", "5", "30"), CheckResult::Good(_)));
        let full = track("10", "4294967295", "4294967295");
        assert!(
            matches!(&full, CheckResult::Poor { found, .. } if found.starts_with("allows 0 requests/s: 0 of 10")),
            "{full:?}"
        );
        assert!(matches!(track("30000", "0", "0"), CheckResult::Good(_)));
        // An unknown lifetime is replaced by the kernel's default.
        assert_eq!(track("40000", "0", "soon"), track("40000", "0", "30"));
        for (most, count) in [
            ("", "0"),
            ("x", "0"),
            ("-1", "0"),
            ("100", ""),
            ("100", "x"),
        ] {
            let result = track(most, count, "30");
            assert!(matches!(result, CheckResult::NotShown(_)), "{result:?}");
        }
        let most = KernelFile::failed("m", io::ErrorKind::NotFound);
        let other = KernelFile::of("c", "0");
        assert_eq!(
            judge_conntrack(&most, &other, &other),
            CheckResult::NotShown("nf_conntrack is not loaded".to_owned())
        );
        let most = KernelFile::failed("m", io::ErrorKind::PermissionDenied);
        assert_eq!(
            judge_conntrack(&most, &other, &other),
            CheckResult::NotShown("m: permission denied".to_owned())
        );
    }

    fn files(soft: &str, hard: &str) -> CheckResult {
        let text = format!(
            "Limit                     Soft Limit           Hard Limit           Units     \n\
             Max processes             40                   41                   processes \n\
             Max open files            {soft:<20} {hard:<20} files     \n"
        );
        judge_files(&KernelFile::of("/proc/self/limits", &text))
    }

    #[test]
    fn the_soft_limit_decides_and_the_hard_limit_decides_who_can_fix_it() {
        for soft in ["unlimited", "512", "1024", "18446744073709551615"] {
            assert!(
                matches!(files(soft, "unlimited"), CheckResult::Good(_)),
                "{soft}"
            );
        }
        assert_eq!(
            files("511", "524288"),
            poor(
                "at most 511: a sweep of names may need 512",
                "ulimit -n 1024; for a service LimitNOFILE=1024"
            )
        );
        assert!(matches!(files("96", "unlimited"), CheckResult::Poor { .. }));
        assert_eq!(
            files("95", "95"),
            CheckResult::Bad {
                found: "at most 95: a sweep needs 96 to start".to_owned(),
                fix: "sudo prlimit -n1024:1024 -p $$; for a service LimitNOFILE=1024".to_owned(),
            }
        );
    }

    #[test]
    fn limits_in_an_unknown_format_are_not_guessed() {
        for text in [
            "",
            "Max open files",
            "Max open files 1024",
            "Max open files many more files",
            "Max open files -1 -1 files",
            "max open files 5 5 files",
        ] {
            let result = judge_files(&KernelFile::of("/proc/self/limits", text));
            assert!(
                matches!(result, CheckResult::NotShown(_)),
                "{text:?}: {result:?}"
            );
        }
    }
}
