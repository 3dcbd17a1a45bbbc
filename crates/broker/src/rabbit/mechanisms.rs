//! Whether a broker offers the way to log in that the settings ask for. A broker that does not closes the connection after
//! a pause, without a word. No I/O.
//!
//! Source: AMQP 0-9-1, sections 2.3.5 (frames) and 4.2 (`connection.start`, class 10, method 10).

use pingfleet_settings::keys::BrokerAuth;

use super::connect_problem::ConnectProblem;

/// What is read of a broker's first frame. Its table of properties takes less than 1 KiB.
const MAX_BYTES: usize = 16 * 1024;

/// The type of a frame with a method.
const METHOD_FRAME: u8 = 1;

/// `connection.start`: class and method.
const CONNECTION_START: [u8; 4] = [0, 10, 0, 10];

/// Looks for the mechanism of SASL in the broker's first frame.
pub(super) struct MechanismCheck {
    auth: BrokerAuth,
    seen: Vec<u8>,
    is_done: bool,
}

impl MechanismCheck {
    pub(super) fn new(auth: BrokerAuth) -> Self {
        Self {
            auth,
            seen: Vec::new(),
            is_done: false,
        }
    }

    /// Takes the next bytes from the broker.
    ///
    /// # Errors
    /// [`ConnectProblem::NotOffered`] once the frame is there without the mechanism.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<(), ConnectProblem> {
        if self.is_done {
            return Ok(());
        }
        self.seen.extend_from_slice(bytes);
        let offered = match mechanisms(&self.seen) {
            Mechanisms::Incomplete if self.seen.len() < MAX_BYTES => return Ok(()),
            // lapin reports what is no AMQP.
            Mechanisms::Incomplete | Mechanisms::NotThere => None,
            Mechanisms::Offered(offered) => Some(offered),
        };
        let wanted = sasl_name(self.auth);
        let is_lacking = offered.is_some_and(|offered| {
            let mut names = offered.split(|byte| *byte == b' ');
            !names.any(|name| name == wanted.as_bytes())
        });
        self.is_done = true;
        self.seen = Vec::new();
        if is_lacking {
            return Err(ConnectProblem::NotOffered(self.auth));
        }
        Ok(())
    }
}

/// The name of a mechanism in SASL.
pub(super) fn sasl_name(auth: BrokerAuth) -> &'static str {
    match auth {
        BrokerAuth::Plain => "PLAIN",
        BrokerAuth::External => "EXTERNAL",
    }
}

/// What a beginning of a broker's bytes says about its mechanisms.
#[derive(Debug, PartialEq, Eq)]
enum Mechanisms<'a> {
    Incomplete,
    /// The bytes are no `connection.start`.
    NotThere,
    /// Separated by spaces.
    Offered(&'a [u8]),
}

fn mechanisms(bytes: &[u8]) -> Mechanisms<'_> {
    // A frame: type, channel (2), size (4), then class, method, the version of the protocol (2), a table, a long string.
    if bytes.first().is_some_and(|kind| *kind != METHOD_FRAME) {
        return Mechanisms::NotThere;
    }
    match bytes.get(7..11) {
        None => return Mechanisms::Incomplete,
        Some(method) if method != CONNECTION_START => return Mechanisms::NotThere,
        Some(_) => {}
    }
    let names = long(bytes, 13).and_then(|(_, after)| long(bytes, after));
    names.map_or(Mechanisms::Incomplete, |(names, _)| {
        Mechanisms::Offered(names)
    })
}

/// The bytes with a length of 4 bytes before them at `from`, and where they end.
fn long(bytes: &[u8], from: usize) -> Option<(&[u8], usize)> {
    let begin = from + 4;
    let length = bytes.get(from..begin)?.try_into().ok()?;
    let end = begin.checked_add(u32::from_be_bytes(length) as usize)?;
    Some((bytes.get(begin..end)?, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first frame of a broker with these mechanisms.
    fn start(mechanisms: &str) -> Vec<u8> {
        let table = b"\x07productS\0\0\0\x08RabbitMQ";
        let mut payload = CONNECTION_START.to_vec();
        payload.extend([0, 9]);
        for part in [&table[..], mechanisms.as_bytes(), b"en_US"] {
            payload.extend((part.len() as u32).to_be_bytes());
            payload.extend(part);
        }
        let mut frame = vec![METHOD_FRAME, 0, 0];
        frame.extend((payload.len() as u32).to_be_bytes());
        frame.extend(payload);
        frame.push(0xce);
        frame
    }

    #[test]
    fn a_mechanism_that_is_not_offered_is_noticed_however_the_bytes_arrive() {
        let lacking = Err(ConnectProblem::NotOffered(BrokerAuth::External));
        for (offered, expected) in [
            ("PLAIN AMQPLAIN", lacking.clone()),
            ("EXTERNALS PLAIN", lacking),
            ("PLAIN EXTERNAL", Ok(())),
            ("EXTERNAL", Ok(())),
        ] {
            let frame = start(offered);
            for cut in 1..frame.len() {
                let mut check = MechanismCheck::new(BrokerAuth::External);
                let first = check.take(&frame[..cut]);
                let both = first.and_then(|()| check.take(&frame[cut..]));
                assert_eq!(both, expected, "{offered}, {cut}");
            }
        }
    }

    #[test]
    fn what_is_no_first_frame_is_left_to_the_protocol() {
        let mut huge = start("PLAIN");
        // A table of 4 GiB.
        huge[13..17].fill(0xff);
        huge.resize(2 * MAX_BYTES, 0);
        let mut other = start("PLAIN");
        other[10] = 11;
        for bytes in [b"AMQP\0\0\x09\x01".to_vec(), huge, other] {
            let mut check = MechanismCheck::new(BrokerAuth::External);
            assert_eq!(check.take(&bytes), Ok(()));
            assert!(check.is_done && check.seen.is_empty());
            // Whatever comes later is no first frame.
            assert_eq!(check.take(&start("PLAIN")), Ok(()));
        }
    }
}
