// SPDX-License-Identifier: GPL-2.0

//! An input, read as a list of decisions.

/// What is left of an input. Past its end there are zeros.
pub(crate) struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    /// The whole input.
    pub(crate) fn new(input: &'a [u8]) -> Self {
        Self(input)
    }

    /// Whether there is more.
    pub(crate) fn more(&self) -> bool {
        !self.0.is_empty()
    }

    /// At most `n` of the bytes that are left.
    pub(crate) fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// All bytes that are left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.0)
    }

    /// `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.bytes(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    /// A byte.
    pub(crate) fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    /// Yes or no.
    pub(crate) fn bit(&mut self) -> bool {
        self.u8() & 1 != 0
    }

    /// A number of 16 bits.
    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// A number of 32 bits.
    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// A number of 64 bits.
    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// A number of 64 bits, small ones written short.
    pub(crate) fn number(&mut self) -> u64 {
        match self.u8() {
            small @ 0..=249 => small.into(),
            250 => self.u16().into(),
            251 => self.u32().into(),
            252 => self.u64(),
            // At the end of all numbers.
            253 => u64::MAX - u64::from(self.u8()),
            // Around a power of two.
            254 => (1_u64 << (self.u8() % 64)).wrapping_sub(1),
            255 => (1_u64 << (self.u8() % 64)).wrapping_add(self.u8().into()),
        }
    }

    /// One of several.
    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::from(self.u8()) % from.len()]
    }
}
