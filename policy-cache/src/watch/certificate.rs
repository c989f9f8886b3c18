//! A certificate in DER → when its time is over. Reads no more of it than the way there, and believes nothing else.
//!
//! Source: RFC 5280, 4.1; X.690 for the encoding.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// The version, which the oldest certificates do not have.
const VERSION: u8 = 0xa0;

/// The end of its validity; `None` when the bytes are no certificate.
pub(crate) fn not_after(der: &[u8]) -> Option<Timestamp> {
    let certificate = Reader(der).take(SEQUENCE)?;
    let mut fields = Reader(Reader(certificate).take(SEQUENCE)?);
    if fields.next_is(VERSION) {
        fields.take(VERSION)?;
    }
    fields.take(INTEGER)?;
    fields.take(SEQUENCE)?;
    fields.take(SEQUENCE)?;
    let mut validity = Reader(fields.take(SEQUENCE)?);
    validity.time()?;
    validity.time()
}

/// What is left of a sequence.
struct Reader<'d>(&'d [u8]);

impl<'d> Reader<'d> {
    fn next_is(&self, tag: u8) -> bool {
        self.0.first() == Some(&tag)
    }

    /// The content of the next element, when it has this tag.
    fn take(&mut self, tag: u8) -> Option<&'d [u8]> {
        let (&found, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        // Seven bits of length, or how many bytes of it follow: a certificate needs three at most.
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x83 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        (found == tag).then_some(content)
    }

    fn time(&mut self) -> Option<Timestamp> {
        let (tag, century) =
            if self.next_is(UTC_TIME) { (UTC_TIME, true) } else { (GENERALIZED_TIME, false) };
        let text = std::str::from_utf8(self.take(tag)?).ok()?;
        let text = match century {
            true if text.get(..2)? >= "50" => format!("19{text}"),
            true => format!("20{text}"),
            false => text.to_owned(),
        };
        let time = DateTime::strptime("%Y%m%d%H%M%SZ", text).ok()?;
        Some(time.to_zoned(TimeZone::UTC).ok()?.timestamp())
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn certificate(year: i32) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.not_before = date_time_ymd(1999, 5, 6);
        params.not_after = date_time_ymd(year, 12, 31);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn the_end_is_read_from_both_of_its_forms() {
        for year in [1999, 2000, 2026, 2049, 2050, 2120] {
            let expected: Timestamp = format!("{year}-12-31T00:00:00Z").parse().unwrap();
            assert_eq!(not_after(&certificate(year)), Some(expected), "{year}");
        }
    }

    #[test]
    fn bytes_that_are_cut_off_or_damaged_give_none_or_some_time_and_never_a_panic() {
        let whole = certificate(2030);
        for length in 0..whole.len() {
            assert_eq!(not_after(&whole[..length]), None, "{length}");
        }
        for place in 0..200 {
            for value in [0, 0x17, 0x30, 0x7f, 0x80, 0x84, 0xff] {
                let mut damaged = whole.clone();
                damaged[place] = value;
                let _ = not_after(&damaged);
            }
        }
    }
}
