// SPDX-License-Identifier: GPL-2.0

//! Frames: what goes over an established connection.
//!
//! A frame is a [`Header`] of [`HEADER_LEN`] bytes, little endian, and a payload:
//!
//! ```text
//!  0       4    5     6        8         16        24        32    36    40
//!  +-------+----+-----+--------+---------+---------+---------+-----+-----+---------
//!  | len   |kind|flags|reserved| seq     | ack     | id      | tag | arg | payload
//!  +-------+----+-----+--------+---------+---------+---------+-----+-----+---------
//! ```
//!
//! | kind       | id             | tag                  | arg            | payload   |
//! |------------|----------------|----------------------|----------------|-----------|
//! | `Message`  | 0              | the message's tag    | 0              | message   |
//! | `Call`     | 0              | function             | 0              | arguments |
//! | `CallSync` | call           | function             | room for reply | arguments |
//! | `Reply`    | call           | length needed        | status         | reply     |
//! | `Credit`   | total granted  | lane                 | 0              | none      |
//! | `Ping`     | 0              | 0                    | 0              | none      |
//! | `Bye`      | 0              | why ([`Bye`])        | 0              | none      |
//!
//! `flags` of a reply is its [`Outcome`]; otherwise it is 0. `seq` and `ack` are for delivery across
//! reconnects; version 1 sends 0 and ignores them.
//!
//! Everything about one frame is checked here, once; behind it, types are trusted. Pure.

use kernel::prelude::*;
use zerocopy::little_endian::{
    I32,
    U16,
    U32,
    U64, //
};
use zerocopy_derive::{
    Immutable,
    KnownLayout,
    Unaligned, //
};

/// Length of a header on the wire.
pub(crate) const HEADER_LEN: usize = 40;

/// A header on the wire.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Wire {
    len: U32,
    kind: u8,
    flags: u8,
    reserved: U16,
    seq: U64,
    ack: U64,
    id: U64,
    tag: U32,
    arg: I32,
}

const _: () = assert!(size_of::<Wire>() == HEADER_LEN);

/// What became of a synchronous call, apart from what its handler says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// The handler ran; its status is in the reply.
    Ran = 0,
    /// There is no such handler.
    NoHandler = 1,
    /// The handler takes no arguments of this length.
    ArgsTooLong = 2,
    /// The handler ran, but its reply has no room at the caller.
    ReplyTooLong = 3,
    /// There was no memory to run it.
    NoMemory = 4,
    /// The node is stopping.
    Stopping = 5,
}

impl Outcome {
    fn from_wire(value: u8) -> Option<Self> {
        Some(match value {
            0 => Outcome::Ran,
            1 => Outcome::NoHandler,
            2 => Outcome::ArgsTooLong,
            3 => Outcome::ReplyTooLong,
            4 => Outcome::NoMemory,
            5 => Outcome::Stopping,
            _ => return None,
        })
    }
}

/// Why a node says good-bye.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bye {
    /// It is being unloaded.
    Stopping = 0,
    /// Its administrator has taken this peer down.
    AdminDown = 1,
    /// Its administrator wants a new connection.
    Reconnect = 2,
    /// It has another connection to this peer, which replaces this one.
    Replaced = 3,
    /// It could not make sense of what it was sent.
    Protocol = 4,
}

impl Bye {
    fn from_wire(value: u32) -> Option<Self> {
        Some(match value {
            0 => Bye::Stopping,
            1 => Bye::AdminDown,
            2 => Bye::Reconnect,
            3 => Bye::Replaced,
            4 => Bye::Protocol,
            _ => return None,
        })
    }

    /// For the log: "the peer ...".
    pub(crate) fn text(self) -> &'static str {
        match self {
            Bye::Stopping => "is stopping",
            Bye::AdminDown => "has taken this node down by its administrator",
            Bye::Reconnect => "reconnects by its administrator",
            Bye::Replaced => "has a newer connection",
            Bye::Protocol => "could not make sense of a frame",
        }
    }
}

/// What a frame says, without its payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Header {
    /// A message with its tag.
    Message {
        /// What receivers ask for.
        tag: u32,
        /// Payload length.
        len: u32,
    },
    /// An asynchronous call.
    Call {
        /// The function.
        func: u32,
        /// Payload length.
        len: u32,
    },
    /// A synchronous call.
    CallSync {
        /// Chosen by the caller, returned with the reply.
        id: u64,
        /// The function.
        func: u32,
        /// Room for the reply at the caller.
        reply_max: u32,
        /// Payload length.
        len: u32,
    },
    /// The reply to a synchronous call.
    Reply {
        /// The call's.
        id: u64,
        /// What became of the call.
        outcome: Outcome,
        /// What the handler returned.
        status: i32,
        /// The length of the reply, also where it was too long to be sent.
        needed: u32,
        /// Payload length.
        len: u32,
    },
    /// More credit.
    Credit {
        /// For what.
        lane: super::credit::Lane,
        /// The new total.
        limit: u64,
    },
    /// A sign of life.
    Ping,
    /// The last frame.
    Bye(Bye),
}

/// What is wrong with a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Malformed {
    /// No such kind of frame.
    Kind(u8),
    /// A field that must be zero is not, or has a value that means nothing.
    Field,
    /// Longer than this node accepts.
    TooLong(u32),
}

/// What a node accepts; both sides told each other in the handshake.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    /// Longest message.
    pub(crate) message: u32,
    /// Longest arguments and longest reply.
    pub(crate) rcall: u32,
}

impl Header {
    const MESSAGE: u8 = 1;
    const CALL: u8 = 2;
    const CALL_SYNC: u8 = 3;
    const REPLY: u8 = 4;
    const CREDIT: u8 = 5;
    const PING: u8 = 6;
    const BYE: u8 = 7;

    /// The length of the payload that follows.
    pub(crate) fn payload_len(&self) -> u32 {
        match *self {
            Header::Message { len, .. }
            | Header::Call { len, .. }
            | Header::CallSync { len, .. }
            | Header::Reply { len, .. } => len,
            Header::Credit { .. } | Header::Ping | Header::Bye(_) => 0,
        }
    }

    /// Reads a header, and checks all that can be checked without knowing the connection.
    pub(crate) fn parse(bytes: &[u8; HEADER_LEN], bounds: Bounds) -> Result<Self, Malformed> {
        let wire: Wire = zerocopy::transmute!(*bytes);
        let (id, tag, arg, len) = (
            wire.id.get(),
            wire.tag.get(),
            wire.arg.get(),
            wire.len.get(),
        );
        let header = match wire.kind {
            Self::MESSAGE => Header::Message { tag, len },
            Self::CALL => Header::Call { func: tag, len },
            Self::CALL_SYNC => Header::CallSync {
                id,
                func: tag,
                reply_max: arg.cast_unsigned(),
                len,
            },
            Self::REPLY => Header::Reply {
                id,
                outcome: Outcome::from_wire(wire.flags).ok_or(Malformed::Field)?,
                status: arg,
                needed: tag,
                len,
            },
            Self::CREDIT => Header::Credit {
                lane: super::credit::Lane::from_wire(tag).ok_or(Malformed::Field)?,
                limit: id,
            },
            Self::PING => Header::Ping,
            Self::BYE => Header::Bye(Bye::from_wire(tag).ok_or(Malformed::Field)?),
            kind => return Err(Malformed::Kind(kind)),
        };
        header.check_len(len, bounds)?;
        // What the header does not express must be as it would be sent.
        let again = header.to_wire(wire.seq.get(), wire.ack.get());
        if again.as_bytes() != bytes {
            return Err(Malformed::Field);
        }
        Ok(header)
    }

    fn check_len(&self, len: u32, bounds: Bounds) -> Result<(), Malformed> {
        let max = match *self {
            Header::Message { .. } => bounds.message,
            Header::Call { .. } | Header::Reply { .. } => bounds.rcall,
            Header::CallSync { reply_max, .. } => {
                if reply_max > bounds.rcall {
                    return Err(Malformed::TooLong(reply_max));
                }
                bounds.rcall
            }
            Header::Credit { .. } | Header::Ping | Header::Bye(_) => 0,
        };
        if len > max {
            return Err(Malformed::TooLong(len));
        }
        Ok(())
    }

    fn to_wire(self, seq: u64, ack: u64) -> Wire {
        let (kind, flags, id, tag, arg) = match self {
            Header::Message { tag, .. } => (Self::MESSAGE, 0, 0, tag, 0),
            Header::Call { func, .. } => (Self::CALL, 0, 0, func, 0),
            Header::CallSync {
                id,
                func,
                reply_max,
                ..
            } => (Self::CALL_SYNC, 0, id, func, reply_max.cast_signed()),
            Header::Reply {
                id,
                outcome,
                status,
                needed,
                ..
            } => (Self::REPLY, outcome as u8, id, needed, status),
            Header::Credit { lane, limit } => (Self::CREDIT, 0, limit, lane as u32, 0),
            Header::Ping => (Self::PING, 0, 0, 0, 0),
            Header::Bye(why) => (Self::BYE, 0, 0, why as u32, 0),
        };
        Wire {
            len: self.payload_len().into(),
            kind,
            flags,
            reserved: 0.into(),
            seq: seq.into(),
            ack: ack.into(),
            id: id.into(),
            tag: tag.into(),
            arg: arg.into(),
        }
    }

    /// The header as it goes over the wire.
    pub(crate) fn encode(self) -> [u8; HEADER_LEN] {
        zerocopy::transmute!(self.to_wire(0, 0))
    }
}

/// A frame that has come in whole.
pub(crate) struct Frame {
    /// What it says.
    pub(crate) header: Header,
    /// Its payload, of [`Header::payload_len`] bytes.
    pub(crate) payload: KVVec<u8>,
}

/// Why the next frame cannot be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stop {
    /// The connection is of no more use.
    Malformed(Malformed),
    /// There is no memory for the payload now. Nothing is lost: try again later.
    NoMemory,
}

/// Puts frames together from a stream of bytes.
///
/// The bytes are read where [`Assembler::space`] says: into a small stage, from which many small
/// frames are taken at once, or, when most of a long payload is missing, straight into that.
///
/// # Invariants
///
/// `start <= end <= stage.len()`; `filled <= payload.len() == header.payload_len()` of `current`.
pub(crate) struct Assembler {
    stage: KVVec<u8>,
    start: usize,
    end: usize,
    current: Option<Partial>,
}

struct Partial {
    header: Header,
    payload: KVVec<u8>,
    filled: usize,
}

impl Partial {
    fn missing(&self) -> usize {
        self.payload.len() - self.filled
    }
}

impl Assembler {
    /// Size of the stage: what is read at once while frames are small.
    pub(crate) const STAGE: usize = 8192;

    /// An assembler at the beginning of a stream.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            stage: zeroed(Self::STAGE)?,
            start: 0,
            end: 0,
            current: None,
        })
    }

    /// Where to put the bytes that come next; never empty after [`Assembler::next`] has returned
    /// `None`. Tell how many they were by [`Assembler::commit`].
    pub(crate) fn space(&mut self) -> &mut [u8] {
        if self.straight() {
            if let Some(current) = &mut self.current {
                return &mut current.payload[current.filled..];
            }
        }
        if self.start > 0 {
            self.stage.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.stage[self.end..]
    }

    /// Whether the stage is empty and most of a stage's worth of payload is missing.
    fn straight(&self) -> bool {
        self.start == self.end
            && self
                .current
                .as_ref()
                .is_some_and(|c| c.missing() >= Self::STAGE / 2)
    }

    /// `n` bytes were put into [`Assembler::space`].
    pub(crate) fn commit(&mut self, n: usize) {
        // INVARIANT: Not more than there was space for.
        if self.straight() {
            if let Some(current) = &mut self.current {
                current.filled += n.min(current.missing());
            }
        } else {
            self.end = (self.end + n).min(self.stage.len());
        }
    }

    /// The first `N` bytes of the stream, once they are there: the handshake's.
    pub(crate) fn take_exact<const N: usize>(&mut self) -> Option<[u8; N]> {
        let bytes = *self.stage[self.start..self.end].first_chunk::<N>()?;
        self.start += N;
        Some(bytes)
    }

    /// The next frame, once it is there.
    pub(crate) fn next(&mut self, bounds: Bounds) -> Result<Option<Frame>, Stop> {
        if self.current.is_none() {
            let Some(bytes) = self.stage[self.start..self.end].first_chunk::<HEADER_LEN>() else {
                return Ok(None);
            };
            let header = Header::parse(bytes, bounds).map_err(Stop::Malformed)?;
            let payload = zeroed(header.payload_len() as usize).map_err(|_| Stop::NoMemory)?;
            self.start += HEADER_LEN;
            self.current = Some(Partial {
                header,
                payload,
                filled: 0,
            });
        }
        if let Some(current) = &mut self.current {
            let n = current.missing().min(self.end - self.start);
            current.payload[current.filled..][..n].copy_from_slice(&self.stage[self.start..][..n]);
            current.filled += n;
            self.start += n;
            if current.missing() > 0 {
                return Ok(None);
            }
        }
        Ok(self.current.take().map(|c| Frame {
            header: c.header,
            payload: c.payload,
        }))
    }
}

/// A buffer of `len` zero bytes.
pub(crate) fn zeroed(len: usize) -> Result<KVVec<u8>> {
    Ok(KVVec::from_elem(0, len, GFP_KERNEL)?)
}
