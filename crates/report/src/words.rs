//! Numbers, times and reasons as a person reads them. No I/O.

use std::cmp::Reverse;

use jiff::{Timestamp, ZonedDateTime, tz::TimeZone};
use pingfleet_wire::{LocalLossCounts, StatusKind};

/// The sign of a status, which stands before its name.
#[must_use]
pub fn sign(status: StatusKind) -> &'static str {
    match status {
        StatusKind::Up => "●",
        StatusKind::Late => "◐",
        StatusKind::Unreachable => "▲",
        StatusKind::DnsFailed => "⌀",
        StatusKind::SendFailed => "!",
        StatusKind::Unknown => "?",
        StatusKind::Down => "✕",
    }
}

/// A number with a comma between thousands.
#[must_use]
pub fn grouped(number: i64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) && !text.ends_with('-') {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// "1 target", "2 targets".
#[must_use]
pub fn counted(count: i64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", grouped(count))
}

/// A worker by its name, with its login if that is to be shown: `rack-7 (login pingfleet-worker-rack-7)`.
#[must_use]
pub fn worker_name(name: &str, login: Option<&str>) -> String {
    match login {
        Some(login) => format!("{name} (login {login})"),
        None => name.to_owned(),
    }
}

/// Whether these are the logins of workers that have several ones. Then it says something to show them.
#[must_use]
pub fn are_several<'a>(mut logins: impl Iterator<Item = Option<&'a str>>) -> bool {
    let first = logins.next();
    logins.any(|login| Some(login) != first)
}

/// A value with three significant digits: "0", "0.042", "2.61", "31.2", "1,024".
#[must_use]
pub fn three_digits(value: f64) -> String {
    // From these on a rounded value has a digit more before the point.
    if value == 0.0 {
        "0".to_owned()
    } else if value >= 99.95 {
        grouped(value.round() as i64)
    } else if value >= 9.995 {
        format!("{value:.1}")
    } else if value >= 0.9995 {
        format!("{value:.2}")
    } else {
        format!("{value:.3}")
    }
}

/// Nanoseconds as milliseconds.
#[must_use]
pub fn millis(nanos: i64) -> String {
    three_digits(nanos as f64 / 1_000_000.0)
}

/// A share in percent. Only what is none or all of it is 0.0 or 100.0.
#[must_use]
pub fn percent(part: i64, whole: i64) -> String {
    let share = 100.0 * part as f64 / whole.max(1) as f64;
    if part > 0 && share < 0.05 {
        "<0.1 %".to_owned()
    } else if part < whole && share >= 99.95 {
        ">99.9 %".to_owned()
    } else {
        format!("{share:.1} %")
    }
}

/// A length of time: "0.42 s", "2 min 40 s", "3 h 5 min".
#[must_use]
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as i64;
    match whole {
        ..10 => format!("{seconds:.1} s"),
        10..60 => format!("{whole} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

/// A long time in its two largest units: "40 s", "12 min", "5 h 20 min", "2 days 4 h", "31 days".
#[must_use]
pub fn length(micros: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    let seconds = micros.max(0) / 1_000_000;
    let two = |large: String, small: i64, unit: &str| match small {
        0 => large,
        small => format!("{large} {small} {unit}"),
    };
    match seconds {
        ..MINUTE => format!("{seconds} s"),
        MINUTE..HOUR => format!("{} min", seconds / MINUTE),
        HOUR..DAY => two(
            format!("{} h", seconds / HOUR),
            seconds % HOUR / MINUTE,
            "min",
        ),
        _ => {
            let days = counted(seconds / DAY, "day");
            let hours = if seconds < 7 * DAY {
                seconds % DAY / HOUR
            } else {
                0
            };
            two(days, hours, "h")
        }
    }
}

/// A wait as short as it can be: "1 s", "2.25 s", "200 ms".
#[must_use]
pub fn wait(wait: std::time::Duration) -> String {
    let millis = wait.as_millis();
    if millis < 1000 {
        format!("{millis} ms")
    } else {
        format!("{} s", millis as f64 / 1000.0)
    }
}

/// The clock of this machine, to write times as a person reads them.
pub struct Clock {
    now: ZonedDateTime,
}

impl Clock {
    /// The time zone of this machine, and the time now.
    #[must_use]
    pub fn now() -> Self {
        Self {
            now: Timestamp::now().to_zoned_datetime(TimeZone::system()),
        }
    }

    /// A time in microseconds since 1970-01-01 UTC, in the time zone of this machine: without the date if it is today, and without the clock if
    /// it is in another year.
    #[must_use]
    pub fn minute(&self, micros: i64) -> String {
        self.write(Timestamp::from_microsecond(micros).ok(), "%H:%M", "")
    }

    /// The same, always with the clock.
    #[must_use]
    pub fn moment(&self, micros: i64) -> String {
        let time = Timestamp::from_microsecond(micros).ok();
        self.write(time, "%H:%M", " %H:%M")
    }

    /// How long ago a time in microseconds since 1970-01-01 UTC is.
    #[must_use]
    pub fn since(&self, micros: i64) -> String {
        length(self.now.timestamp().as_microsecond() - micros)
    }

    /// The same to the second and always with the clock, for a time in RFC 3339.
    #[must_use]
    pub fn second(&self, time: &str) -> String {
        self.write(time.parse().ok(), "%H:%M:%S", " %H:%M:%S")
    }

    /// Date and clock, for what is read on another day. The time is in RFC 3339.
    #[must_use]
    pub fn full(&self, time: &str) -> String {
        self.date_and_clock(time.parse().ok(), "%-d %b %Y %H:%M:%S")
    }

    /// The same to the minute, for microseconds since 1970-01-01 UTC.
    #[must_use]
    pub fn full_minute(&self, micros: i64) -> String {
        self.date_and_clock(Timestamp::from_microsecond(micros).ok(), "%-d %b %Y %H:%M")
    }

    fn date_and_clock(&self, time: Option<Timestamp>, format: &str) -> String {
        time.map_or_else(
            || "unknown time".to_owned(),
            |time| {
                let time = time.to_zoned_datetime(self.now.time_zone().clone());
                time.strftime(format).to_string()
            },
        )
    }

    /// The time now, in RFC 3339, UTC.
    #[must_use]
    pub fn now_utc(&self) -> String {
        self.now
            .timestamp()
            .strftime("%Y-%m-%dT%H:%M:%SZ")
            .to_string()
    }

    /// A time in microseconds since 1970-01-01 UTC as RFC 3339, UTC.
    #[must_use]
    pub fn utc(micros: i64) -> String {
        let time = Timestamp::from_microsecond(micros).ok();
        time.map_or_else(
            || "unknown time".to_owned(),
            |time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        )
    }

    /// The time zone of this machine as its distance from UTC, such as `+01:00`.
    #[must_use]
    pub fn zone(&self) -> String {
        self.now.strftime("%:z").to_string()
    }

    fn write(&self, time: Option<Timestamp>, clock: &str, other_year: &str) -> String {
        let Some(time) = time else {
            return "unknown time".to_owned();
        };
        let time = time.to_zoned_datetime(self.now.time_zone().clone());
        if time.date() == self.now.date() {
            time.strftime(&format!("{clock} today")).to_string()
        } else if time.year() == self.now.year() {
            time.strftime(&format!("%-d %b {clock}")).to_string()
        } else {
            time.strftime(&format!("%-d %b %Y{other_year}")).to_string()
        }
    }
}

/// The status and the reason of a row as a phrase.
#[must_use]
pub fn why(status: &str, reason: Option<&str>, sent: i64) -> String {
    let reason = reason.unwrap_or_default();
    match status {
        "down" => down(reason, sent),
        "unreachable" => unreachable(reason),
        "dns_failed" => match reason {
            "nxdomain" => "no such name",
            "no_data" => "the name has no address",
            "servfail" => "the name server failed",
            "timeout" => "no name server answered",
            "blocked_address" => "the name has no address of a host",
            other => other,
        }
        .to_owned(),
        "send_failed" => format!("the kernel refused to send: {}", errno_text(reason)),
        "unknown" => format!("may be lost here: {}", local_losses(reason)),
        _ => reason.to_owned(),
    }
}

fn down(reason: &str, sent: i64) -> String {
    match reason.split_once(' ').unwrap_or((reason, "")) {
        ("", _) if sent > 0 => format!("no answer to {}", counted(sent, "request")),
        ("", _) => "no answer".to_owned(),
        ("no_arp", _) => "nobody answers ARP for it".to_owned(),
        ("arp_answered", "") => "silent, but answers ARP".to_owned(),
        ("arp_answered", address) => format!("silent, but answers ARP ({address})"),
        ("payload_changed", _) => "the reply had another payload".to_owned(),
        ("answered_by", "") => "another address answered".to_owned(),
        ("answered_by", address) => format!("another address answered: {address}"),
        _ => reason.to_owned(),
    }
}

/// Names of the types and codes of RFC 792, RFC 1812 and RFC 4443.
fn unreachable(reason: &str) -> String {
    let words: Vec<_> = reason.split(' ').collect();
    let ["type", kind, "code", code, "from", reporter] = words.as_slice() else {
        return reason.to_owned();
    };
    let what = match (*kind, *code, reporter.contains(':')) {
        ("3", "0", false) => "network unreachable",
        ("3", "1", false) | ("1", "3", true) => "host unreachable",
        ("3", "2", false) => "protocol unreachable",
        ("3", "3", false) | ("1", "4", true) => "port unreachable",
        ("3", "9" | "10" | "13", false) | ("1", "1", true) => "prohibited",
        ("1", "0", true) => "no route",
        ("11", "0", false) | ("3", "0", true) => "time to live exceeded",
        _ => return format!("ICMP type {kind} code {code}, says {reporter}"),
    };
    format!("{what}, says {reporter}")
}

/// The text in "errno 101 (Network is unreachable)".
fn errno_text(reason: &str) -> &str {
    reason
        .split_once('(')
        .and_then(|(_, text)| text.strip_suffix(')'))
        .unwrap_or(reason)
}

/// The causes of local loss in words.
#[must_use]
pub fn local_losses(reason: &str) -> String {
    let causes = reason.split(',').map(|cause| match cause {
        "socket_drops" => "receive buffer full",
        "send_path" => "the way out failed",
        "stalled" => "the process was stalled",
        "canary" => "own ping unanswered",
        "interrupted" => "stopped too early",
        other => other,
    });
    causes.collect::<Vec<_>>().join(", ")
}

/// What a worker may have lost on its machine, in words, the most frequent cause first: "12 receive buffer full, 1 stalled".
#[must_use]
pub fn loss_counts(counts: &LocalLossCounts) -> String {
    let mut causes: Vec<_> = counts.named().filter(|(_, count)| *count > 0).collect();
    causes.sort_by_key(|(_, count)| Reverse(*count));
    let causes = causes.into_iter().map(|(name, count)| {
        let cause = match name {
            "stalled" => "stalled".to_owned(),
            "gateway_no_arp" => "gateway without ARP".to_owned(),
            "rp_filter" => "reverse path filter".to_owned(),
            name => local_losses(name).replace('_', " "),
        };
        format!("{} {cause}", grouped(count.min(i64::MAX as u64) as i64))
    });
    causes.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_thousands_are_grouped() {
        for (value, text) in [
            (0.0, "0"),
            (0.0421, "0.042"),
            (0.9996, "1.00"),
            (2.614, "2.61"),
            (9.996, "10.0"),
            (31.25, "31.2"),
            (99.96, "100"),
            (1_234_567.0, "1,234,567"),
        ] {
            assert_eq!(three_digits(value), text);
        }
        assert_eq!(
            ["-1,000", "-100", "7"],
            [-1000, -100, 7].map(grouped).each_ref().map(String::as_str)
        );
    }

    #[test]
    fn losses_are_in_words_the_most_frequent_first() {
        let counts = LocalLossCounts {
            socket_drops: 1200,
            stalled: 1,
            link_down: 2,
            ..LocalLossCounts::default()
        };
        assert_eq!(
            loss_counts(&counts),
            "1,200 receive buffer full, 2 link down, 1 stalled"
        );
        assert_eq!(loss_counts(&LocalLossCounts::default()), "");
    }

    #[test]
    fn only_nothing_is_0_percent_and_only_all_is_100() {
        for (part, whole, text) in [
            (0, 3, "0.0 %"),
            (1, 1_000_000, "<0.1 %"),
            (1, 3, "33.3 %"),
            (999_999, 1_000_000, ">99.9 %"),
            (3, 3, "100.0 %"),
            (0, 0, "0.0 %"),
        ] {
            assert_eq!(percent(part, whole), text);
        }
    }

    #[test]
    fn times_have_their_units() {
        for (seconds, text) in [
            (0.42, "0.4 s"),
            (12.4, "12 s"),
            (59.9, "1 min 0 s"),
            (160.0, "2 min 40 s"),
            (11_100.0, "3 h 5 min"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn long_times_have_their_two_largest_units() {
        for (seconds, text) in [
            (-1, "0 s"),
            (59, "59 s"),
            (3599, "59 min"),
            (3600, "1 h"),
            (19_200, "5 h 20 min"),
            (86_400, "1 day"),
            (187_200, "2 days 4 h"),
            (2_692_800, "31 days"),
        ] {
            assert_eq!(length(seconds * 1_000_000), text);
        }
    }

    #[test]
    fn every_reason_is_a_phrase() {
        for (status, reason, text) in [
            ("down", None, "no answer to 3 requests"),
            ("down", Some("no_arp"), "nobody answers ARP for it"),
            (
                "down",
                Some("arp_answered 52:54:00:1:2:3"),
                "silent, but answers ARP (52:54:00:1:2:3)",
            ),
            (
                "down",
                Some("answered_by 10.0.0.1"),
                "another address answered: 10.0.0.1",
            ),
            (
                "unreachable",
                Some("type 3 code 1 from 10.0.0.1"),
                "host unreachable, says 10.0.0.1",
            ),
            (
                "unreachable",
                Some("type 1 code 0 from 2001:db8::1"),
                "no route, says 2001:db8::1",
            ),
            (
                "unreachable",
                Some("type 3 code 7 from 10.0.0.1"),
                "ICMP type 3 code 7, says 10.0.0.1",
            ),
            ("dns_failed", Some("nxdomain"), "no such name"),
            (
                "send_failed",
                Some("errno 101 (Network is unreachable)"),
                "the kernel refused to send: Network is unreachable",
            ),
            (
                "send_failed",
                Some("errno 999"),
                "the kernel refused to send: errno 999",
            ),
            (
                "unknown",
                Some("socket_drops,stalled"),
                "may be lost here: receive buffer full, the process was stalled",
            ),
        ] {
            assert_eq!(why(status, reason, 3), text);
        }
    }
}
