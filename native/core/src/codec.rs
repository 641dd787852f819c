//! The canonical codec: MessagePack, arrays for structs, shortest integer forms, `bin` for bytes.
//!
//! Writing can only produce the canonical form. Reading refuses everything else (wide integers, `str` for bytes,
//! trailing bytes), so that one value has one encoding and a hash of it names the value.

use alloy_primitives::{Address, B256, U256};

use crate::error::{CoreError, Result};

/// Appends canonical values to a buffer.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn with_capacity(capacity: usize) -> Self {
        Self { bytes: Vec::with_capacity(capacity) }
    }

    pub fn array(&mut self, length: usize) -> &mut Self {
        match length {
            0..=15 => self.bytes.push(0x90 | length as u8),
            16..=0xffff => self.tagged(0xdc, &(length as u16).to_be_bytes()),
            _ => self.tagged(0xdd, &(length as u32).to_be_bytes()),
        }
        self
    }

    pub fn map(&mut self, length: usize) -> &mut Self {
        match length {
            0..=15 => self.bytes.push(0x80 | length as u8),
            _ => self.tagged(0xde, &(length as u16).to_be_bytes()),
        }
        self
    }

    pub fn uint(&mut self, value: u64) -> &mut Self {
        match value {
            0..=0x7f => self.bytes.push(value as u8),
            0x80..=0xff => self.tagged(0xcc, &[value as u8]),
            0x100..=0xffff => self.tagged(0xcd, &(value as u16).to_be_bytes()),
            0x1_0000..=0xffff_ffff => self.tagged(0xce, &(value as u32).to_be_bytes()),
            _ => self.tagged(0xcf, &value.to_be_bytes()),
        }
        self
    }

    pub fn bytes(&mut self, value: &[u8]) -> &mut Self {
        match value.len() {
            0..=0xff => self.tagged(0xc4, &[value.len() as u8]),
            0x100..=0xffff => self.tagged(0xc5, &(value.len() as u16).to_be_bytes()),
            _ => self.tagged(0xc6, &(value.len() as u32).to_be_bytes()),
        }
        self.bytes.extend_from_slice(value);
        self
    }

    pub fn text(&mut self, value: &str) -> &mut Self {
        match value.len() {
            0..=31 => self.bytes.push(0xa0 | value.len() as u8),
            32..=0xff => self.tagged(0xd9, &[value.len() as u8]),
            0x100..=0xffff => self.tagged(0xda, &(value.len() as u16).to_be_bytes()),
            _ => self.tagged(0xdb, &(value.len() as u32).to_be_bytes()),
        }
        self.bytes.extend_from_slice(value.as_bytes());
        self
    }

    pub fn boolean(&mut self, value: bool) -> &mut Self {
        self.bytes.push(if value { 0xc3 } else { 0xc2 });
        self
    }

    pub fn nil(&mut self) -> &mut Self {
        self.bytes.push(0xc0);
        self
    }

    /// A 256-bit number: `bin` of exactly 32 big-endian bytes.
    pub fn u256(&mut self, value: &U256) -> &mut Self {
        self.bytes(&value.to_be_bytes::<32>())
    }

    /// Appends a value that is already encoded.
    pub fn encoded(&mut self, value: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(value);
        self
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }

    fn tagged(&mut self, tag: u8, payload: &[u8]) {
        self.bytes.push(tag);
        self.bytes.extend_from_slice(payload);
    }
}

/// Reads canonical values in order; the caller ends with `finish`.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    /// # Errors
    /// When bytes are left over.
    pub fn finish(self) -> Result<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(malformed(format!("{} trailing bytes", self.rest.len()))) }
    }

    pub fn array(&mut self) -> Result<usize> {
        let length = match self.byte()? {
            tag @ 0x90..=0x9f => usize::from(tag & 0x0f),
            0xdc => self.length(2, 16)?,
            0xdd => self.length(4, 0x1_0000)?,
            tag => return Err(wrong("array", tag)),
        };
        self.bounded(length)
    }

    /// An array of exactly `length` entries.
    pub fn array_of(&mut self, length: usize) -> Result<()> {
        let got = self.array()?;
        if got == length { Ok(()) } else { Err(malformed(format!("expected {length} fields, got {got}"))) }
    }

    pub fn map(&mut self) -> Result<usize> {
        let length = match self.byte()? {
            tag @ 0x80..=0x8f => usize::from(tag & 0x0f),
            0xde => self.length(2, 16)?,
            tag => return Err(wrong("map", tag)),
        };
        self.bounded(length)
    }

    pub fn uint(&mut self) -> Result<u64> {
        let (value, least) = match self.byte()? {
            tag @ 0..=0x7f => (u64::from(tag), 0),
            0xcc => (self.big_endian(1)?, 0x80),
            0xcd => (self.big_endian(2)?, 0x100),
            0xce => (self.big_endian(4)?, 0x1_0000),
            0xcf => (self.big_endian(8)?, 0x1_0000_0000),
            tag => return Err(wrong("unsigned integer", tag)),
        };
        if value >= least { Ok(value) } else { Err(malformed(format!("integer {value} is not in its shortest form"))) }
    }

    pub fn small<T: TryFrom<u64>>(&mut self) -> Result<T> {
        let value = self.uint()?;
        T::try_from(value).map_err(|_| malformed(format!("integer {value} is out of range")))
    }

    pub fn bytes(&mut self) -> Result<&'a [u8]> {
        let length = match self.byte()? {
            0xc4 => self.length(1, 0)?,
            0xc5 => self.length(2, 0x100)?,
            0xc6 => self.length(4, 0x1_0000)?,
            tag => return Err(wrong("bytes", tag)),
        };
        self.take(length)
    }

    pub fn text(&mut self) -> Result<&'a str> {
        let length = match self.byte()? {
            tag @ 0xa0..=0xbf => usize::from(tag & 0x1f),
            0xd9 => self.length(1, 32)?,
            0xda => self.length(2, 0x100)?,
            0xdb => self.length(4, 0x1_0000)?,
            tag => return Err(wrong("text", tag)),
        };
        std::str::from_utf8(self.take(length)?).map_err(|_| malformed("text is not UTF-8"))
    }

    pub fn boolean(&mut self) -> Result<bool> {
        match self.byte()? {
            0xc2 => Ok(false),
            0xc3 => Ok(true),
            tag => Err(wrong("boolean", tag)),
        }
    }

    /// Consumes a nil when one comes next.
    pub fn nil(&mut self) -> bool {
        let is_nil = self.rest.first() == Some(&0xc0);
        if is_nil {
            self.rest = &self.rest[1..];
        }
        is_nil
    }

    pub fn fixed<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.bytes()?;
        bytes.try_into().map_err(|_| malformed(format!("expected {N} bytes, got {}", bytes.len())))
    }

    pub fn hash(&mut self) -> Result<B256> {
        Ok(B256::new(self.fixed()?))
    }

    pub fn address(&mut self) -> Result<Address> {
        Ok(Address::new(self.fixed()?))
    }

    pub fn u256(&mut self) -> Result<U256> {
        Ok(U256::from_be_bytes::<32>(self.fixed()?))
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        if length > self.rest.len() {
            return Err(malformed(format!("{length} bytes announced, {} left", self.rest.len())));
        }
        let (head, tail) = self.rest.split_at(length);
        self.rest = tail;
        Ok(head)
    }

    fn big_endian(&mut self, width: usize) -> Result<u64> {
        Ok(self.take(width)?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    fn length(&mut self, width: usize, least: u64) -> Result<usize> {
        let value = self.big_endian(width)?;
        if value < least {
            return Err(malformed(format!("length {value} is not in its shortest form")));
        }
        Ok(value as usize)
    }

    /// Refuses a count that the remaining bytes cannot hold, before anything is allocated for it.
    fn bounded(&self, length: usize) -> Result<usize> {
        if length <= self.rest.len() {
            Ok(length)
        } else {
            Err(malformed(format!("{length} entries announced, {} bytes left", self.rest.len())))
        }
    }
}

fn malformed(text: impl Into<String>) -> CoreError {
    CoreError::Malformed(text.into())
}

fn wrong(expected: &str, tag: u8) -> CoreError {
    malformed(format!("expected {expected}, got tag 0x{tag:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_read_only_in_their_shortest_form() {
        for value in [0, 1, 127, 128, 255, 256, 65_535, 65_536, u64::from(u32::MAX), 1 << 32, u64::MAX] {
            let mut writer = Writer::new();
            writer.uint(value);
            assert_eq!(Reader::new(&writer.finish()).uint(), Ok(value));
        }
        for wide in [&[0xcc, 1][..], &[0xcd, 0, 255], &[0xce, 0, 0, 255, 255], &[0xcf, 0, 0, 0, 0, 255, 255, 255, 255]]
        {
            assert!(Reader::new(wide).uint().is_err());
        }
    }

    #[test]
    fn an_announced_length_beyond_the_input_is_refused_before_allocation() {
        assert!(Reader::new(&[0xdd, 0xff, 0xff, 0xff, 0xff]).array().is_err());
        assert!(Reader::new(&[0xc6, 0xff, 0xff, 0xff, 0xff]).bytes().is_err());
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut reader = Reader::new(&[1, 2]);
        assert_eq!(reader.uint(), Ok(1));
        assert!(reader.finish().is_err());
    }
}
