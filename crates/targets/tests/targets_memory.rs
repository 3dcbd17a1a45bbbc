//! The memory of a long list. Alone in its file, because the kernel counts the peak of a whole process.
#![cfg(target_os = "linux")]

use std::{
    fs,
    io::{self, Read},
    net::Ipv4Addr,
};

use pingfleet_targets::{TargetArgs, read};
use pingfleet_wire::{Family, Target};

/// A million lines that are made while they are read: addresses, of which no two are neighbours.
struct Scattered {
    next: u32,
    line: Vec<u8>,
}

const LINES: u32 = 1_000_000;

fn address(number: u32) -> Ipv4Addr {
    // An odd factor makes a bijection; the doubling clears the lowest bit, so that no two addresses touch.
    Ipv4Addr::from_bits(0x1000_0000 + (number.wrapping_mul(0x9E37_79B1) >> 4) / 2 * 2)
}

impl Read for Scattered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.line.is_empty() && self.next < LINES {
            self.line = format!("{}\n", address(self.next)).into_bytes();
            self.next += 1;
        }
        let length = self.line.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.line[..length]);
        self.line.drain(..length);
        Ok(length)
    }
}

/// The largest resident size of this process so far, in bytes.
fn peak() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line?.split_whitespace().nth(1)?;
    Some(kib.parse::<u64>().ok()? * 1024)
}

#[test]
fn a_million_scattered_addresses_cost_well_under_80_mb() {
    let args = TargetArgs {
        targets: vec!["-".to_owned(), "10.0.0.0/8".to_owned()],
        yes: true,
        ..TargetArgs::default()
    };
    let before = peak().unwrap();
    let input = Scattered {
        next: 0,
        line: Vec::new(),
    };
    let targets = read(&args, Family::Any, input).unwrap();
    let cost = peak().unwrap() - before;
    let scattered = targets.count() - ((1 << 24) - 2);
    println!(
        "{scattered} scattered addresses and a /8: {} MB",
        cost / 1_000_000
    );
    assert!(scattered > 900_000, "{scattered}");
    // Negative control: a list of all 17.8 million addresses would take 71 MB for four bytes each alone.
    assert!(cost < 60_000_000, "{cost}");
    let last = targets.get(targets.count() - 1).unwrap().target;
    assert_eq!(
        last,
        Target::Address(Ipv4Addr::new(10, 255, 255, 254).into())
    );
}
