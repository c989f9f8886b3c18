//! Values to JSON, appended to a buffer: what a record's line is made of, without anything allocated on the way.
//!
//! Writes what `serde_json` writes, to the byte.

use std::io::Write;
use std::net::IpAddr;
use std::time::SystemTime;

use jiff::Timestamp;

/// Appends a string with its quotes.
pub(crate) fn text(to: &mut Vec<u8>, text: &str) {
    to.push(b'"');
    inside(to, text);
    to.push(b'"');
}

/// Appends what stands between the quotes of a string.
pub(crate) fn inside(to: &mut Vec<u8>, text: &str) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";

    let mut rest = text.as_bytes();
    while let Some(place) = rest.iter().position(|byte| *byte < 0x20 || matches!(byte, b'"' | b'\\')) {
        let (plain, after) = rest.split_at(place);
        to.extend_from_slice(plain);
        match after[0] {
            b'"' => to.extend_from_slice(b"\\\""),
            b'\\' => to.extend_from_slice(b"\\\\"),
            0x08 => to.extend_from_slice(b"\\b"),
            0x0c => to.extend_from_slice(b"\\f"),
            b'\n' => to.extend_from_slice(b"\\n"),
            b'\r' => to.extend_from_slice(b"\\r"),
            b'\t' => to.extend_from_slice(b"\\t"),
            control => {
                let digits = [DIGITS[usize::from(control >> 4)], DIGITS[usize::from(control & 15)]];
                to.extend_from_slice(b"\\u00");
                to.extend_from_slice(&digits);
            }
        }
        rest = &after[1..];
    }
    to.extend_from_slice(rest);
}

/// Appends a number.
pub(crate) fn number(to: &mut Vec<u8>, number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut left = number;
    loop {
        at -= 1;
        digits[at] = digit(left % 10);
        left /= 10;
        if left == 0 {
            break;
        }
    }
    to.extend_from_slice(&digits[at..]);
}

/// Appends an address with its quotes.
pub(crate) fn ip(to: &mut Vec<u8>, ip: IpAddr) {
    to.push(b'"');
    match ip {
        IpAddr::V4(ip) => {
            for (place, octet) in ip.octets().into_iter().enumerate() {
                if place > 0 {
                    to.push(b'.');
                }
                number(to, octet.into());
            }
        }
        // Writing to memory cannot fail.
        IpAddr::V6(ip) => drop(write!(to, "{ip}")),
    }
    to.push(b'"');
}

/// Appends a wall-clock time with its quotes: RFC 3339 in UTC with nine digits after the point, so that lines sort as
/// text. Outside the years -9999 to 9999 there is no such text; a clock that far off is shown as the epoch.
pub(crate) fn time(to: &mut Vec<u8>, time: SystemTime) {
    /// A day before the end of the year 9999, which is as far as jiff goes.
    const END: u64 = 253_402_128_000;

    to.push(b'"');
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) if since.as_secs() < END => {
            let (day, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
            let (year, month, day) = date(day);
            fixed::<4>(to, year);
            to.push(b'-');
            fixed::<2>(to, month);
            to.push(b'-');
            fixed::<2>(to, day);
            to.push(b'T');
            fixed::<2>(to, second / 3_600);
            to.push(b':');
            fixed::<2>(to, second / 60 % 60);
            to.push(b':');
            fixed::<2>(to, second % 60);
            to.push(b'.');
            fixed::<9>(to, since.subsec_nanos().into());
            to.push(b'Z');
        }
        _ => {
            let timestamp = Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH);
            drop(write!(to, "{timestamp:.9}"));
        }
    }
    to.push(b'"');
}

/// A number as so many digits.
fn fixed<const DIGITS: usize>(to: &mut Vec<u8>, number: u64) {
    let mut digits = [0; DIGITS];
    let mut left = number;
    for place in digits.iter_mut().rev() {
        *place = digit(left % 10);
        left /= 10;
    }
    to.extend_from_slice(&digits);
}

fn digit(value: u64) -> u8 {
    b'0' + u8::try_from(value).unwrap_or(0)
}

/// Year, month and day of a day after 1970. Years are counted from March, so that a leap day ends one, and in eras
/// of 400 of them, which have 146,097 days each.
fn date(day: u64) -> (u64, u64, u64) {
    let day = day + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn written(write: impl Fn(&mut Vec<u8>)) -> String {
        let mut bytes = Vec::new();
        write(&mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    fn by_jiff(time: SystemTime) -> String {
        format!("\"{:.9}\"", Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH))
    }

    proptest! {
        #[test]
        fn texts_numbers_and_addresses_are_written_as_serde_writes_them(
            any in ".*", bytes in proptest::collection::vec(0_u8..0x80, 0..40), value: u64, ip: IpAddr,
        ) {
            let ascii = String::from_utf8(bytes).unwrap();
            for one in [any, ascii] {
                prop_assert_eq!(written(|to| text(to, &one)), serde_json::to_string(&one).unwrap());
            }
            prop_assert_eq!(written(|to| number(to, value)), value.to_string());
            prop_assert_eq!(written(|to| super::ip(to, ip)), serde_json::to_string(&ip).unwrap());
        }

        #[test]
        fn times_are_written_as_jiff_writes_them(seconds in 0_u64..300_000_000_000, nanos in 0_u32..1_000_000_000) {
            let at = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos);
            prop_assert_eq!(written(|to| time(to, at)), by_jiff(at));
        }
    }

    #[test]
    fn every_day_has_its_date_and_impossible_times_are_the_epoch() {
        for day in (0..2_932_800_u64).step_by(1) {
            if day < 80_000 || day % 97 == 0 {
                let at = SystemTime::UNIX_EPOCH + Duration::from_secs(day * 86_400 + day % 86_400);
                assert_eq!(written(|to| time(to, at)), by_jiff(at));
            }
        }
        let before = SystemTime::UNIX_EPOCH - Duration::from_nanos(1);
        assert_eq!(written(|to| time(to, before)), "\"1969-12-31T23:59:59.999999999Z\"");
        let far = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40);
        assert_eq!(written(|to| time(to, far)), "\"1970-01-01T00:00:00.000000000Z\"");
    }
}
