//! The kernel's limits for one process and for all: socket buffers, tracked connections, open files.
//!
//! Source: Linux `socket(7)`, `proc_pid_limits(5)`, the kernel's `nf_conntrack-sysctl.rst`.

use std::io;

use rustix::net::{AddressFamily, SocketType, socket, sockopt};

use super::{DEFAULT_RATE, Finding, Reading, Silent, grouped, set};

/// One of the two buffers of a socket.
struct Buffer {
    /// The limit for whoever has no `CAP_NET_ADMIN`.
    setting: &'static str,
    /// What the prober asks for, in bytes.
    wanted: u64,
    /// Enough, in bytes, for a large sweep.
    enough: u64,
    /// What is wrong with less.
    otherwise: &'static str,
}

/// Replies that came and are not read yet. 16 MiB hold those of some seconds.
const RECEIVE: Buffer = Buffer {
    setting: "net.core.rmem_max",
    wanted: 64 << 20,
    enough: 16 << 20,
    otherwise: "a burst of replies may not fit",
};

/// Requests that wait for the link address of a neighbour are charged to it, those to dead ones for seconds.
const SEND: Buffer = Buffer {
    setting: "net.core.wmem_max",
    wanted: 4 << 20,
    enough: 4 << 20,
    otherwise: "dead neighbours hold up the others",
};

/// What a socket was given.
#[derive(Clone, Copy)]
struct Given {
    /// Bytes, without what the kernel adds for itself.
    bytes: u64,
    /// Past the limit, as only `CAP_NET_ADMIN` can.
    forced: bool,
}

/// How long an entry for a ping lives, where the kernel does not say: its own default, in seconds.
const PING_TRACKED: u64 = 30;

/// Files below this are too few to start a sweep with four probing threads: 40 fail, 45 are used.
const FEWEST_FILES: u64 = 64;

/// A sweep of names with four probing threads and 100 queries outstanding was measured to have 205 files open. A
/// thread keeps up to 16 sockets where runs differ in source, interface or TTL. A name for whose query there is no
/// socket ends as `dns_failed`.
const MANY_FILES: u64 = 512;

/// A limit of files to set: the usual default.
const USUAL_FILES: u64 = 1024;

pub(super) fn receive_buffer() -> Finding {
    let given = give(RECEIVE.wanted, |socket, bytes| {
        let forced = sockopt::set_socket_recv_buffer_size_force(socket, bytes).is_ok();
        if !forced {
            sockopt::set_socket_recv_buffer_size(socket, bytes)?;
        }
        Ok((sockopt::socket_recv_buffer_size(socket)?, forced))
    });
    judge_buffer(&RECEIVE, &Reading::setting(RECEIVE.setting), given)
}

pub(super) fn send_buffer() -> Finding {
    let given = give(SEND.wanted, |socket, bytes| {
        let forced = sockopt::set_socket_send_buffer_size_force(socket, bytes).is_ok();
        if !forced {
            sockopt::set_socket_send_buffer_size(socket, bytes)?;
        }
        Ok((sockopt::socket_send_buffer_size(socket)?, forced))
    });
    judge_buffer(&SEND, &Reading::setting(SEND.setting), given)
}

/// Asks for a buffer on a socket that anybody may open; the limits are the same for all kinds.
fn give(
    wanted: u64,
    ask: impl FnOnce(&rustix::fd::OwnedFd, usize) -> rustix::io::Result<(usize, bool)>,
) -> io::Result<Given> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let (bytes, forced) = ask(&socket, wanted as usize)?;
    // The kernel doubles what is set, for its bookkeeping (socket(7)).
    let bytes = bytes as u64 / 2;
    Ok(Given { bytes, forced })
}

fn judge_buffer(buffer: &Buffer, limit: &Reading, given: io::Result<Given>) -> Finding {
    let setting = buffer.setting;
    let bytes = match (given, limit.number()) {
        (Ok(Given { bytes, forced }), _) if forced && bytes >= buffer.enough => {
            let given = size(bytes);
            return Finding::Good(format!("{given}: CAP_NET_ADMIN passes {setting}"));
        }
        // What was given is the truth where both are known: it may be a sandbox that answers, and not a kernel.
        (Ok(Given { bytes, .. }), _) => bytes,
        (Err(_), Ok(limit)) => limit,
        (Err(_), Err(silent)) => return silent.into(),
    };
    if bytes >= buffer.enough {
        return Finding::Good(format!("{}, as {setting} permits", size(bytes)));
    }
    Finding::Poor {
        found: format!("at most {}: {}", size(bytes), buffer.otherwise),
        mend: set(setting, buffer.wanted),
    }
}

fn size(bytes: u64) -> String {
    if bytes >= 1 << 20 {
        format!("{} MiB", bytes >> 20)
    } else {
        format!("{} KiB", bytes >> 10)
    }
}

pub(super) fn conntrack() -> Finding {
    let [most, count, lifetime] = ["max", "count", "icmp_timeout"]
        .map(|name| Reading::setting(&format!("net.netfilter.nf_conntrack_{name}")));
    judge_conntrack(&most, &count, &lifetime)
}

/// Every ping is an entry for half a minute; what finds the table full is dropped without a word.
fn judge_conntrack(most: &Reading, count: &Reading, lifetime: &Reading) -> Finding {
    let limit = match most.number() {
        // The kernel takes 0 for no limit.
        Ok(0) => return Finding::Good("tracks any number of pings".to_owned()),
        Ok(limit) => limit,
        Err(Silent::NotThere { .. }) => {
            return Finding::Untold("nf_conntrack is not loaded here".to_owned());
        }
        Err(silent) => return silent.into(),
    };
    let count = match count.number() {
        Ok(count) => count,
        Err(silent) => return silent.into(),
    };
    let lifetime = lifetime.number().unwrap_or(PING_TRACKED).max(1);
    let free = limit.saturating_sub(count);
    let rate = free / lifetime;
    let found = format!(
        "bears {} requests/s: {} of {} entries free",
        grouped(rate),
        grouped(free),
        grouped(limit)
    );
    if rate >= DEFAULT_RATE {
        return Finding::Good(found);
    }
    let needed = count + DEFAULT_RATE * lifetime;
    Finding::Poor {
        found,
        mend: set(&most.name, needed.next_power_of_two()),
    }
}

pub(super) fn open_files() -> Finding {
    judge_files(&Reading::file("/proc/self/limits"))
}

fn judge_files(limits: &Reading) -> Finding {
    let [soft, hard] = match limits.parsed(parse_files) {
        Ok(limits) => limits,
        Err(silent) => return silent.into(),
    };
    let may = grouped(soft);
    if soft == u64::MAX {
        return Finding::Good("any number".to_owned());
    }
    if soft >= MANY_FILES {
        return Finding::Good(format!(
            "up to {may}; a sweep of names may need {MANY_FILES}"
        ));
    }
    let mend = if hard >= USUAL_FILES {
        format!("ulimit -n {USUAL_FILES}; for a service LimitNOFILE={USUAL_FILES}")
    } else {
        format!("sudo prlimit -n{USUAL_FILES}:{USUAL_FILES} -p $$; for a service LimitNOFILE=")
            + &USUAL_FILES.to_string()
    };
    if soft < FEWEST_FILES {
        return Finding::Bad {
            found: format!("at most {may}: a sweep needs {FEWEST_FILES} to start"),
            mend,
        };
    }
    Finding::Poor {
        found: format!("at most {may}: a sweep of names may need {MANY_FILES}"),
        mend,
    }
}

/// The soft and the hard limit; no limit is the largest number.
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

    fn given(bytes: u64, forced: bool) -> Given {
        Given { bytes, forced }
    }

    fn poor(found: &str, mend: &str) -> Finding {
        Finding::Poor {
            found: found.to_owned(),
            mend: mend.to_owned(),
        }
    }

    #[test]
    fn a_small_buffer_is_poor_unless_the_capability_passes_the_limit() {
        let limit = Reading::of(RECEIVE.setting, "212992\n");
        assert_eq!(
            judge_buffer(&RECEIVE, &limit, Ok(given(212_992, false))),
            poor(
                "at most 208 KiB: a burst of replies may not fit",
                "sudo sysctl -w net.core.rmem_max=67108864"
            )
        );
        assert_eq!(
            judge_buffer(&RECEIVE, &limit, Ok(given(64 << 20, true))),
            Finding::Good("64 MiB: CAP_NET_ADMIN passes net.core.rmem_max".to_owned())
        );
        assert_eq!(
            judge_buffer(&SEND, &limit, Ok(given(212_992, false))),
            poor(
                "at most 208 KiB: dead neighbours hold up the others",
                "sudo sysctl -w net.core.wmem_max=4194304"
            )
        );
        // Enough begins with exactly what the prober asks for.
        for (bytes, enough) in [((4 << 20) - 1, false), (4 << 20, true)] {
            let finding = judge_buffer(&SEND, &limit, Ok(given(bytes, false)));
            assert_eq!(
                matches!(finding, Finding::Good(_)),
                enough,
                "{bytes}: {finding:?}"
            );
        }
    }

    #[test]
    fn a_limit_that_is_not_shown_is_taken_from_the_socket_and_else_not_guessed() {
        let hidden = Reading::failed(RECEIVE.setting, io::ErrorKind::NotFound);
        assert_eq!(
            judge_buffer(&RECEIVE, &hidden, Ok(given(64 << 20, false))),
            Finding::Good("64 MiB, as net.core.rmem_max permits".to_owned())
        );
        let refused = || Err(io::ErrorKind::PermissionDenied.into());
        assert_eq!(
            judge_buffer(&RECEIVE, &hidden, refused()),
            Finding::Untold("net.core.rmem_max is not there".to_owned())
        );
        let odd = Reading::of(RECEIVE.setting, "-1\n");
        assert_eq!(
            judge_buffer(&RECEIVE, &odd, refused()),
            Finding::Untold("net.core.rmem_max reads \"-1\"".to_owned())
        );
        let small = Reading::of(RECEIVE.setting, "4096\n");
        let finding = judge_buffer(&RECEIVE, &small, refused());
        assert!(matches!(finding, Finding::Poor { found, .. } if found.contains("at most 4 KiB")));
    }

    fn track(most: &str, count: &str, lifetime: &str) -> Finding {
        let of = |name: &str, text: &str| {
            Reading::of(&format!("net.netfilter.nf_conntrack_{name}"), text)
        };
        judge_conntrack(
            &of("max", most),
            &of("count", count),
            &of("icmp_timeout", lifetime),
        )
    }

    #[test]
    fn conntrack_bears_the_rate_for_which_its_free_entries_last() {
        assert_eq!(
            track("262144\n", "100\n", "30\n"),
            Finding::Good("bears 8,734 requests/s: 262,044 of 262,144 entries free".to_owned())
        );
        assert!(matches!(track("30000", "0", "30"), Finding::Good(_)));
        assert_eq!(
            track("65536", "35537", "30"),
            poor(
                "bears 999 requests/s: 29,999 of 65,536 entries free",
                "sudo sysctl -w net.netfilter.nf_conntrack_max=131072"
            )
        );
        assert!(matches!(track("30000", "0", "60"), Finding::Poor { .. }));
        // What mends it is enough.
        assert!(matches!(track("131072", "35537", "30"), Finding::Good(_)));
    }

    #[test]
    fn odd_figures_of_conntrack_neither_overflow_nor_are_guessed_at() {
        assert!(matches!(track("0", "5", "30"), Finding::Good(_)));
        let full = track("10", "4294967295", "4294967295");
        assert!(
            matches!(&full, Finding::Poor { found, .. } if found.starts_with("bears 0 requests/s: 0 of 10")),
            "{full:?}"
        );
        assert!(matches!(track("30000", "0", "0"), Finding::Good(_)));
        // Unknown lifetimes are the kernel's default.
        assert_eq!(track("40000", "0", "soon"), track("40000", "0", "30"));
        for (most, count) in [
            ("", "0"),
            ("x", "0"),
            ("-1", "0"),
            ("100", ""),
            ("100", "x"),
        ] {
            let finding = track(most, count, "30");
            assert!(matches!(finding, Finding::Untold(_)), "{finding:?}");
        }
        let most = Reading::failed("m", io::ErrorKind::NotFound);
        let other = Reading::of("c", "0");
        assert_eq!(
            judge_conntrack(&most, &other, &other),
            Finding::Untold("nf_conntrack is not loaded here".to_owned())
        );
        let most = Reading::failed("m", io::ErrorKind::PermissionDenied);
        assert_eq!(
            judge_conntrack(&most, &other, &other),
            Finding::Untold("m: permission denied".to_owned())
        );
    }

    fn files(soft: &str, hard: &str) -> Finding {
        let text = format!(
            "Limit                     Soft Limit           Hard Limit           Units     \n\
             Max processes             40                   41                   processes \n\
             Max open files            {soft:<20} {hard:<20} files     \n"
        );
        judge_files(&Reading::of("/proc/self/limits", &text))
    }

    #[test]
    fn open_files_are_judged_by_the_soft_limit_and_mended_by_whom_the_hard_one_lets() {
        for soft in ["unlimited", "512", "1024", "18446744073709551615"] {
            assert!(
                matches!(files(soft, "unlimited"), Finding::Good(_)),
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
        assert!(matches!(files("64", "unlimited"), Finding::Poor { .. }));
        assert_eq!(
            files("63", "63"),
            Finding::Bad {
                found: "at most 63: a sweep needs 64 to start".to_owned(),
                mend: "sudo prlimit -n1024:1024 -p $$; for a service LimitNOFILE=1024".to_owned(),
            }
        );
    }

    #[test]
    fn limits_of_another_form_are_not_guessed_at() {
        for text in [
            "",
            "Max open files",
            "Max open files 1024",
            "Max open files many more files",
            "Max open files -1 -1 files",
            "max open files 5 5 files",
        ] {
            let finding = judge_files(&Reading::of("/proc/self/limits", text));
            assert!(
                matches!(finding, Finding::Untold(_)),
                "{text:?}: {finding:?}"
            );
        }
    }
}
