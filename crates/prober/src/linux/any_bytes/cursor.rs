//! Takes values from the bytes of a fuzzer. After their end everything is zero.

/// The bytes that are left.
pub(super) struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next `N` bytes.
    pub(super) fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut taken = [0; N];
        let (head, rest) = self.0.split_at(self.0.len().min(N));
        taken[..head.len()].copy_from_slice(head);
        self.0 = rest;
        taken
    }

    /// The next byte.
    pub(super) fn byte(&mut self) -> u8 {
        let [byte] = self.take();
        byte
    }

    /// All that is left.
    pub(super) fn rest(self) -> &'a [u8] {
        self.0
    }
}

/// Changes a message by a mask: zeros leave it as it is, and what the mask is longer is appended. So a fuzzer gets at the
/// bytes of a genuine message without knowing the key of its cookie.
pub(super) fn masked(mut message: Vec<u8>, mask: &[u8]) -> Vec<u8> {
    message.resize(message.len().max(mask.len()), 0);
    for (byte, mask) in message.iter_mut().zip(mask) {
        *byte ^= mask;
    }
    message
}
