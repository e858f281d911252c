// SPDX-License-Identifier: GPL-2.0

//! The handshake: who is there, and whether the two belong together.
//!
//! The node with the lower id connects (P10) and sends a `Hello`; the other answers with a `Welcome`
//! or a `Refusal`, and the connection is established or closed. Each is one [`Greeting`] of
//! [`GREETING_LEN`] bytes, little endian:
//!
//! ```text
//!  0       4         6      7        8      10     12        16
//!  +-------+---------+------+--------+------+------+---------+-----------------------+
//!  | magic | version | kind | reason | from | to   | dead_ms | incarnation of `from` |
//!  +-------+---------+------+--------+------+------+---------+-----------------------+
//!  24               32               40            44          48            56
//!  +----------------+----------------+-------------+-----------+-------------+-------------+
//!  | incarnation of | last frame     | max_message | max_rcall | queue_bytes | rcall_bytes |
//!  | `to`, or 0     | delivered      |             |           |             |             |
//!  +----------------+----------------+-------------+-----------+-------------+-------------+
//!  64                 72                80                                                144
//!  +------------------+-----------------+-----------------------------------------------------+
//!  | granted messages | granted calls   | cluster name, zero-padded                           |
//!  +------------------+-----------------+-----------------------------------------------------+
//! ```
//!
//! There are two kinds of `Hello`, one for each [`Channel`].
//!
//! In a `Hello` the incarnation of `to` is the one that the sender has a session with, 0 if with none;
//! in a `Welcome` it is that of the `Hello`. What has been delivered and granted is counted since the
//! session began (`Documentation/protocol.md`).
//!
//! Magic, version, kind and reason have their place in every version to come, and a greeting its
//! length, so that nodes of different versions can refuse each other with a reason.
//!
//! What either side reads is garbage until it has been checked; [`check_hello`] and
//! [`check_answer`] do all of it. Pure.

use super::frame::Bounds;
use crate::config::{
    ClusterName,
    NodeId,
    DEAD_MS,
    MAX_NODES, //
};
use core::net::IpAddr;
use kernel::fmt;
use kernel::prelude::*;
use zerocopy::little_endian::{
    U16,
    U32,
    U64, //
};
use zerocopy_derive::{
    Immutable,
    KnownLayout,
    Unaligned, //
};

/// Length of a greeting on the wire.
pub(crate) const GREETING_LEN: usize = 144;

/// "KCCM", as it stands on the wire.
const MAGIC: [u8; 4] = *b"KCCM";

/// The version of the protocol.
pub(crate) const VERSION: u16 = 2;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Wire {
    magic: [u8; 4],
    version: U16,
    kind: u8,
    reason: u8,
    from: U16,
    to: U16,
    dead_ms: U32,
    incarnation: U64,
    to_incarnation: U64,
    received: U64,
    max_message: U32,
    max_rcall: U32,
    queue_bytes: U64,
    rcall_bytes: U64,
    granted: [U64; 2],
    cluster: [u8; ClusterName::MAX],
}

const _: () = assert!(size_of::<Wire>() == GREETING_LEN);

const HELLO: u8 = 1;
const WELCOME: u8 = 2;
const REFUSAL: u8 = 3;
const HELLO_BULK: u8 = 4;

/// Which of the two connections that two nodes may have. Each has sessions of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Channel {
    /// The one that makes the peer up or down, for all that does not ask for the other.
    Main,
    /// The one for what nothing else is to wait behind, if anybody has asked for it.
    Bulk,
}

/// As it is said behind a node's name: nothing of the one that all have.
impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Channel::Main => "",
            Channel::Bulk => " for bulk",
        })
    }
}

/// Why a node will not talk to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    /// It speaks another version.
    Version = 1,
    /// It belongs to another cluster.
    Cluster = 2,
    /// Its id is not among this node's peers, or it takes this node for another.
    UnknownId = 3,
    /// It has the higher id, so it should have waited.
    Direction = 4,
    /// Another incarnation of it is connected and alive.
    Duplicate = 5,
    /// It comes from an address that is not the one of that id.
    Address = 6,
    /// The administrator has taken it down.
    AdminDown = 7,
    /// The node is stopping.
    Stopping = 8,
    /// What it said makes no sense.
    Malformed = 9,
    /// It has been said too late: there is a session already, of which it does not know.
    Stale = 10,
    /// It is for the bulk channel, and there is no session yet on the main one, or the peer is down on that.
    Early = 11,
}

impl Refusal {
    fn from_wire(value: u8) -> Option<Self> {
        Some(match value {
            1 => Refusal::Version,
            2 => Refusal::Cluster,
            3 => Refusal::UnknownId,
            4 => Refusal::Direction,
            5 => Refusal::Duplicate,
            6 => Refusal::Address,
            7 => Refusal::AdminDown,
            8 => Refusal::Stopping,
            9 => Refusal::Malformed,
            10 => Refusal::Stale,
            11 => Refusal::Early,
            _ => return None,
        })
    }

    /// The nearest errno, for `last_error`.
    pub(crate) fn errno(self) -> Error {
        match self {
            Refusal::Version => EPROTO,
            Refusal::Cluster | Refusal::UnknownId | Refusal::Direction | Refusal::Address => EPERM,
            Refusal::Duplicate | Refusal::Stale | Refusal::Early => EBUSY,
            Refusal::AdminDown => EHOSTDOWN,
            Refusal::Stopping => ESHUTDOWN,
            Refusal::Malformed => EINVAL,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::Version => "wrong version",
            Refusal::Cluster => "wrong cluster",
            Refusal::UnknownId => "unknown id",
            Refusal::Direction => "wrong direction",
            Refusal::Duplicate => "duplicate",
            Refusal::Address => "wrong address",
            Refusal::AdminDown => "administratively down",
            Refusal::Stopping => "stopping",
            Refusal::Malformed => "malformed greeting",
            Refusal::Stale => "stale greeting",
            Refusal::Early => "too early",
        })
    }
}

/// What a node says of itself.
#[derive(Clone, Copy)]
pub(crate) struct Identity {
    /// Its id.
    pub(crate) id: NodeId,
    /// Its cluster.
    pub(crate) cluster: ClusterName,
    /// Which run of it this is.
    pub(crate) incarnation: u64,
    /// How long a silence it takes for death.
    pub(crate) dead_ms: u32,
    /// The longest frames it accepts.
    pub(crate) bounds: Bounds,
    /// Windows for messages and for calls to it.
    pub(crate) windows: [u64; 2],
}

/// Where a session stands for one of the two.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Standing {
    /// The incarnation of the other that it is with, 0 if there is none.
    pub(crate) with: u64,
    /// The number of the last frame delivered in it.
    pub(crate) received: u64,
    /// What has been granted in it, for each lane.
    pub(crate) granted: [u64; 2],
}

impl Standing {
    /// What it grants to that incarnation of the other, for each lane: what was granted to an earlier one
    /// does not count.
    pub(crate) fn granted_to(&self, incarnation: u64) -> [u64; 2] {
        if self.with == 0 || self.with == incarnation {
            self.granted
        } else {
            [0, 0]
        }
    }
}

/// What the handshake has told of a peer.
#[derive(Clone, Copy)]
pub(crate) struct Greeting {
    /// What the connection is to be; what an answer is to says that for it.
    pub(crate) channel: Channel,
    /// The peer.
    pub(crate) peer: Identity,
    /// Where it stands.
    pub(crate) standing: Standing,
}

/// What an answer to a `Hello` can be.
pub(crate) enum Answer {
    /// The peer accepts.
    Welcome(Greeting),
    /// The peer refuses.
    Refused(Refusal),
}

/// What goes into a greeting, beside what a node is.
#[derive(Default)]
struct To {
    id: NodeId,
    standing: Standing,
}

fn encode(kind: u8, reason: u8, me: &Identity, to: To) -> Bytes {
    zerocopy::transmute!(Wire {
        magic: MAGIC,
        version: VERSION.into(),
        kind,
        reason,
        from: me.id.into(),
        to: to.id.into(),
        dead_ms: me.dead_ms.into(),
        incarnation: me.incarnation.into(),
        to_incarnation: to.standing.with.into(),
        received: to.standing.received.into(),
        max_message: me.bounds.message.into(),
        max_rcall: me.bounds.rcall.into(),
        queue_bytes: me.windows[0].into(),
        rcall_bytes: me.windows[1].into(),
        granted: to.standing.granted.map(U64::from),
        cluster: *me.cluster.wire(),
    })
}

/// A greeting on the wire.
pub(crate) type Bytes = [u8; GREETING_LEN];

/// The first words of the node that connects.
pub(crate) fn hello(me: &Identity, id: NodeId, channel: Channel, standing: Standing) -> Bytes {
    let kind = match channel {
        Channel::Main => HELLO,
        Channel::Bulk => HELLO_BULK,
    };
    encode(kind, 0, me, To { id, standing })
}

/// The answer to a good `Hello`.
pub(crate) fn welcome(me: &Identity, peer: &Identity, standing: Standing) -> Bytes {
    let to = To {
        id: peer.id,
        standing: Standing {
            with: peer.incarnation,
            ..standing
        },
    };
    encode(WELCOME, 0, me, to)
}

/// The answer to any other.
pub(crate) fn refuse(me: &Identity, reason: Refusal) -> Bytes {
    encode(REFUSAL, reason as u8, me, To::default())
}

/// The id that a greeting claims to come from; not to be believed.
pub(crate) fn claimed_id(bytes: &Bytes) -> NodeId {
    let wire: Wire = zerocopy::transmute!(*bytes);
    wire.from.get()
}

/// Why a `Hello` is not accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reject {
    /// It is not KCCM's: close without a word.
    Garbage,
    /// Answer with the reason. `from` is what the other claims to be.
    Refuse {
        /// The reason.
        reason: Refusal,
        /// The id it claims, where that could be read.
        from: Option<NodeId>,
    },
}

/// What the accepting node knows of the peer that a `Hello` claims to come from.
pub(crate) struct Claimed {
    /// Where that peer lives.
    pub(crate) ip: IpAddr,
    /// Whether the administrator has taken it down.
    pub(crate) admin_down: bool,
    /// Its incarnation, if it is connected at present and has been heard of lately.
    pub(crate) alive: Option<u64>,
    /// Whether there is a session on the main channel with the incarnation that greets, which is not down.
    pub(crate) known: bool,
    /// Whether this node can go on from where the greeting says that it is; `None` if there is no
    /// session with that incarnation.
    pub(crate) resumable: Option<bool>,
}

/// Judges a `Hello` that came in from `source`. `lookup` tells of the peer with an id, `None` if
/// there is none.
pub(crate) fn check_hello(
    bytes: &Bytes,
    me: &Identity,
    source: IpAddr,
    lookup: impl FnOnce(&Greeting) -> Option<Claimed>,
) -> Result<Greeting, Reject> {
    let wire: Wire = zerocopy::transmute!(*bytes);
    if wire.magic != MAGIC {
        return Err(Reject::Garbage);
    }
    let from = wire.from.get();
    let refuse = |reason| Reject::Refuse {
        reason,
        from: Some(from),
    };
    if wire.version.get() != VERSION {
        return Err(Reject::Refuse {
            reason: Refusal::Version,
            from: None,
        });
    }
    let is_hello = matches!(wire.kind, HELLO | HELLO_BULK) && wire.reason == 0;
    let greeting = read(&wire).filter(|_| is_hello);
    let greeting = greeting.ok_or(refuse(Refusal::Malformed))?;
    let peer = &greeting.peer;
    if peer.cluster != me.cluster {
        return Err(refuse(Refusal::Cluster));
    }
    if wire.to.get() != me.id || from == me.id {
        return Err(refuse(Refusal::UnknownId));
    }
    let claimed = lookup(&greeting).ok_or(refuse(Refusal::UnknownId))?;
    if from > me.id {
        return Err(refuse(Refusal::Direction));
    }
    // Where a node at an address of the other family comes from is not known.
    if source != claimed.ip && source.is_ipv4() == claimed.ip.is_ipv4() {
        return Err(refuse(Refusal::Address));
    }
    if claimed.admin_down {
        return Err(refuse(Refusal::AdminDown));
    }
    if greeting.channel == Channel::Bulk && !claimed.known {
        return Err(refuse(Refusal::Early));
    }
    if claimed.alive.is_some_and(|i| i != peer.incarnation) {
        return Err(refuse(Refusal::Duplicate));
    }
    if claimed.resumable == Some(false) {
        return Err(refuse(Refusal::Stale));
    }
    Ok(greeting)
}

/// Judges the answer to the `Hello` that was sent to `expected`.
///
/// `Err` means that what answered there is not that peer, for the reason given.
pub(crate) fn check_answer(
    bytes: &Bytes,
    me: &Identity,
    expected: NodeId,
) -> Result<Answer, Refusal> {
    let wire: Wire = zerocopy::transmute!(*bytes);
    if wire.magic != MAGIC {
        return Err(Refusal::Malformed);
    }
    if wire.kind == REFUSAL {
        // A refusal may come from another version, so nothing else of it is believed.
        return Refusal::from_wire(wire.reason)
            .map(Answer::Refused)
            .ok_or(Refusal::Malformed);
    }
    if wire.version.get() != VERSION {
        return Err(Refusal::Version);
    }
    let greeting = read(&wire)
        .filter(|_| wire.kind == WELCOME && wire.reason == 0)
        .ok_or(Refusal::Malformed)?;
    let peer = &greeting.peer;
    if peer.cluster != me.cluster {
        return Err(Refusal::Cluster);
    }
    if peer.id != expected || wire.to.get() != me.id || wire.to_incarnation.get() != me.incarnation
    {
        return Err(Refusal::UnknownId);
    }
    Ok(Answer::Welcome(greeting))
}

/// What the greeting says, if it makes sense.
fn read(wire: &Wire) -> Option<Greeting> {
    use super::credit::{
        call_cost,
        least_window,
        message_cost, //
    };
    let bounds = Bounds {
        message: wire.max_message.get(),
        rcall: wire.max_rcall.get(),
    };
    let windows = [wire.queue_bytes.get(), wire.rcall_bytes.get()];
    let standing = Standing {
        with: wire.to_incarnation.get(),
        received: wire.received.get(),
        granted: wire.granted.map(U64::get),
    };
    // The same rules as in `config`: smaller windows could leave a sender waiting for ever.
    let sane = usize::from(wire.from.get()) < MAX_NODES
        && usize::from(wire.to.get()) < MAX_NODES
        && wire.incarnation.get() != 0
        && DEAD_MS.contains(&wire.dead_ms.get())
        && windows[0] >= least_window(message_cost(bounds.message))
        && windows[1] >= least_window(call_cost(bounds.rcall, bounds.rcall))
        && windows.iter().all(|&w| w <= 1 << 40)
        && (standing.with != 0 || standing.received == 0);
    if !sane {
        return None;
    }
    let peer = Identity {
        id: wire.from.get(),
        cluster: ClusterName::from_wire(wire.cluster)?,
        incarnation: wire.incarnation.get(),
        dead_ms: wire.dead_ms.get(),
        bounds,
        windows,
    };
    let channel = match wire.kind {
        HELLO_BULK => Channel::Bulk,
        _ => Channel::Main,
    };
    Some(Greeting {
        channel,
        peer,
        standing,
    })
}

#[cfg(KCCM_KUNIT)]
#[kunit_tests(kccm_hello)]
mod tests {
    use super::super::credit::{
        call_cost,
        least_window,
        message_cost, //
    };
    use super::super::frame::tests::Random;
    use super::super::state::Role;
    use super::*;
    use core::net::Ipv4Addr;
    use core::net::Ipv6Addr;
    use kernel::str::CString;

    /// The node that connects, the one that is connected to, and where the first lives.
    const LOW: NodeId = 1;
    const HIGH: NodeId = 2;
    const HOME: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1));

    const LOW_RUN: u64 = 0x1112_1314_1516_1718;
    const HIGH_RUN: u64 = 0x2122_2324_2526_2728;
    const STANDING: Standing = Standing {
        with: HIGH_RUN,
        received: 0x9192_9394_9596_9798,
        granted: [0xa1a2_a3a4_0031_5253, 0xb1b2_b3b4_0005_6162],
    };

    const REFUSALS: [Refusal; 11] = [
        Refusal::Version,
        Refusal::Cluster,
        Refusal::UnknownId,
        Refusal::Direction,
        Refusal::Duplicate,
        Refusal::Address,
        Refusal::AdminDown,
        Refusal::Stopping,
        Refusal::Malformed,
        Refusal::Stale,
        Refusal::Early,
    ];

    fn identity(id: NodeId, incarnation: u64) -> Result<Identity> {
        Ok(Identity {
            id,
            cluster: ClusterName::new(b"prod-1").ok_or(EINVAL)?,
            incarnation,
            dead_ms: 0x0012_3456,
            bounds: Bounds {
                message: 0x0030_3132,
                rcall: 0x0003_4142,
            },
            windows: [0x0061_6263, 0x000f_7172],
        })
    }

    fn low() -> Result<Identity> {
        identity(LOW, LOW_RUN)
    }

    fn high() -> Result<Identity> {
        identity(HIGH, HIGH_RUN)
    }

    /// Writes a field of a greeting where the picture at the top of the file has it.
    fn write<const N: usize>(bytes: &mut Bytes, at: usize, field: [u8; N]) {
        bytes[at..at + N].copy_from_slice(&field);
    }

    /// A greeting as that picture has it.
    fn drawn(kind: u8, reason: u8, me: &Identity, to: &To) -> Bytes {
        let mut bytes = [0; GREETING_LEN];
        write(&mut bytes, 0, *b"KCCM");
        write(&mut bytes, 4, 2_u16.to_le_bytes());
        write(&mut bytes, 6, [kind, reason]);
        write(&mut bytes, 8, me.id.to_le_bytes());
        write(&mut bytes, 10, to.id.to_le_bytes());
        write(&mut bytes, 12, me.dead_ms.to_le_bytes());
        write(&mut bytes, 16, me.incarnation.to_le_bytes());
        write(&mut bytes, 24, to.standing.with.to_le_bytes());
        write(&mut bytes, 40, me.bounds.message.to_le_bytes());
        write(&mut bytes, 44, me.bounds.rcall.to_le_bytes());
        write(&mut bytes, 48, me.windows[0].to_le_bytes());
        write(&mut bytes, 56, me.windows[1].to_le_bytes());
        write(&mut bytes, 32, to.standing.received.to_le_bytes());
        write(&mut bytes, 64, to.standing.granted[0].to_le_bytes());
        write(&mut bytes, 72, to.standing.granted[1].to_le_bytes());
        write(&mut bytes, 80, *me.cluster.wire());
        bytes
    }

    /// Whether all that was understood of a greeting is what it says, but for whom it is to.
    fn understood(greeting: &Greeting, bytes: &Bytes) -> bool {
        let wire: Wire = zerocopy::transmute!(*bytes);
        let to = To {
            id: wire.to.get(),
            standing: greeting.standing,
        };
        drawn(wire.kind, 0, &greeting.peer, &to) == *bytes
    }

    fn sane_dead_ms(bytes: &Bytes) -> bool {
        let wire: Wire = zerocopy::transmute!(*bytes);
        DEAD_MS.contains(&wire.dead_ms.get())
    }

    /// A `Hello` to [`HIGH`], and what that node sees and knows of who sent it. At first it is good.
    struct Hello {
        bytes: Bytes,
        source: IpAddr,
        /// Whether there is a peer with the id in the greeting.
        known: bool,
        admin_down: bool,
        alive: Option<u64>,
        /// Whether there is a session on the main channel.
        main: bool,
        resumable: Option<bool>,
    }

    impl Hello {
        fn new() -> Result<Self> {
            Ok(Self {
                bytes: hello(&low()?, HIGH, Channel::Main, STANDING),
                source: HOME,
                known: true,
                admin_down: false,
                alive: None,
                main: false,
                resumable: None,
            })
        }

        fn for_bulk() -> Result<Self> {
            Ok(Self {
                bytes: hello(&low()?, HIGH, Channel::Bulk, STANDING),
                main: true,
                ..Self::new()?
            })
        }

        fn with<const N: usize>(mut self, at: usize, field: [u8; N]) -> Self {
            write(&mut self.bytes, at, field);
            self
        }

        fn judge(&self) -> Result<Result<Greeting, Reject>> {
            let me = high()?;
            Ok(check_hello(&self.bytes, &me, self.source, |_| {
                self.known.then_some(Claimed {
                    ip: HOME,
                    admin_down: self.admin_down,
                    alive: self.alive,
                    known: self.main,
                    resumable: self.resumable,
                })
            }))
        }

        fn is_accepted(&self) -> Result<bool> {
            Ok(self.judge()?.is_ok_and(|g| understood(&g, &self.bytes)))
        }

        /// The reason that it is refused for, to the node that it claims to come from.
        fn refusal(&self) -> Result<Option<Refusal>> {
            let claimed = claimed_id(&self.bytes);
            match self.judge()? {
                Err(Reject::Refuse { reason, from }) if from == Some(claimed) => Ok(Some(reason)),
                _ => Ok(None),
            }
        }
    }

    /// The answer of [`HIGH`] to [`LOW`], as it should be.
    fn answer() -> Result<Bytes> {
        Ok(welcome(&high()?, &low()?, STANDING))
    }

    /// What is made of an answer: the reason that the peer gives, or that it is not the peer's.
    fn judge_answer(bytes: &Bytes) -> Result<Result<Option<Refusal>, Refusal>> {
        Ok(match check_answer(bytes, &low()?, HIGH) {
            Ok(Answer::Welcome(greeting)) if understood(&greeting, bytes) => Ok(None),
            Ok(Answer::Welcome(_)) => return Err(EILSEQ),
            Ok(Answer::Refused(reason)) => Ok(Some(reason)),
            Err(reason) => Err(reason),
        })
    }

    // ---- Both directions.

    #[test]
    fn greeting_is_as_drawn() -> Result {
        assert_eq!(GREETING_LEN, 144);
        let (low, high) = (low()?, high()?);
        let to_high = To {
            id: HIGH,
            standing: STANDING,
        };
        let to_low = To {
            id: LOW,
            standing: Standing {
                with: LOW_RUN,
                ..STANDING
            },
        };
        let said = hello(&low, HIGH, Channel::Main, STANDING);
        assert!(said == drawn(1, 0, &low, &to_high));
        assert!(welcome(&high, &low, STANDING) == drawn(2, 0, &high, &to_low));
        for (value, reason) in (1..).zip(REFUSALS) {
            assert!(refuse(&high, reason) == drawn(3, value, &high, &To::default()));
        }
        let for_bulk = hello(&low, HIGH, Channel::Bulk, STANDING);
        assert!(for_bulk == drawn(4, 0, &low, &to_high));
        for id in [0, 1, 0x0102, NodeId::MAX] {
            let me = identity(id, 1)?;
            assert_eq!(
                claimed_id(&hello(&me, HIGH, Channel::Main, Standing::default())),
                id
            );
        }
        Ok(())
    }

    #[test]
    fn handshake_tells_both_of_each_other() -> Result {
        let (low, high) = (low()?, high()?);
        let mut asked = None;
        let said = hello(&low, HIGH, Channel::Main, STANDING);
        let heard = check_hello(&said, &high, HOME, |greeting| {
            asked = Some(greeting.peer.id);
            Some(Claimed {
                ip: HOME,
                admin_down: false,
                alive: None,
                known: false,
                resumable: None,
            })
        });
        let heard = heard.map_err(|_| EPROTO)?;
        assert_eq!(asked, Some(LOW));
        assert!(understood(&heard, &said));
        let standing = Standing {
            with: LOW_RUN,
            received: 0,
            granted: [1, 2],
        };
        let said = welcome(&high, &heard.peer, standing);
        let Ok(Answer::Welcome(answered)) = check_answer(&said, &low, HIGH) else {
            return Err(EPROTO);
        };
        assert!(understood(&answered, &said));
        assert_eq!((heard.peer.id, answered.peer.id), (LOW, HIGH));
        assert_eq!(heard.peer.incarnation, LOW_RUN);
        assert_eq!(answered.peer.incarnation, HIGH_RUN);
        assert_eq!((heard.standing, answered.standing), (STANDING, standing));
        Ok(())
    }

    /// Calls `f` for every rule on what may be in a greeting, broken and only just kept: where to
    /// write what, and whether that keeps it.
    fn for_each_rule(mut f: impl FnMut(usize, &[u8], bool) -> Result) -> Result {
        let me = low()?;
        let least = [
            least_window(message_cost(me.bounds.message)),
            least_window(call_cost(me.bounds.rcall, me.bounds.rcall)),
        ];
        for id in [MAX_NODES as NodeId, 257, NodeId::MAX] {
            f(8, &id.to_le_bytes(), false)?;
            f(10, &id.to_le_bytes(), false)?;
        }
        let (first, last) = (*DEAD_MS.start(), *DEAD_MS.end());
        for (ms, kept) in [
            (0, false),
            (first - 1, false),
            (first, true),
            (last, true),
            (last + 1, false),
            (u32::MAX, false),
        ] {
            f(12, &ms.to_le_bytes(), kept)?;
        }
        f(16, &0_u64.to_le_bytes(), false)?;
        // These are judged by whoever knows the session.
        for number in [0_u64, 1, u64::MAX] {
            f(32, &number.to_le_bytes(), true)?;
        }
        for (lane, least) in least.into_iter().enumerate() {
            let (window, granted) = (48 + 8 * lane, 64 + 8 * lane);
            let windows = [
                (0, false),
                (least - 1, false),
                (least, true),
                (1 << 40, true),
                ((1 << 40) + 1, false),
                (u64::MAX, false),
            ];
            for (bytes, kept) in windows {
                f(window, &bytes.to_le_bytes(), kept)?;
            }
            for total in [0, me.windows[lane], u64::MAX] {
                f(granted, &total.to_le_bytes(), true)?;
            }
        }
        // The longest frames that these windows are enough for, and longer ones.
        let most = [
            (3 * me.windows[0] / 4 - 256) as u32,
            ((3 * me.windows[1] / 4 - 256) / 2) as u32,
        ];
        for (at, most) in [(40, most[0]), (44, most[1])] {
            for (len, kept) in [
                (0, true),
                (most, true),
                (most + 1, false),
                (u32::MAX, false),
            ] {
                f(at, &len.to_le_bytes(), kept)?;
            }
        }
        // The cluster's name: something behind its end, a blank, nothing.
        f(80 + 7, b"x", false)?;
        f(80 + ClusterName::MAX - 1, b"x", false)?;
        f(80 + 3, b" ", false)?;
        f(80 + 3, b"\0", false)?;
        f(80, b"\xff", false)?;
        f(80, &[0; ClusterName::MAX], false)
    }

    #[test]
    fn greeting_that_makes_no_sense_is_malformed() -> Result {
        for_each_rule(|at, field, kept| {
            let mut hello = Hello::new()?;
            hello.bytes[at..at + field.len()].copy_from_slice(field);
            let mut answer = answer()?;
            answer[at..at + field.len()].copy_from_slice(field);
            let (expected, heard) = if kept {
                ((None, true), Ok(None))
            } else {
                ((Some(Refusal::Malformed), false), Err(Refusal::Malformed))
            };
            let judged = (hello.refusal()?, hello.is_accepted()?);
            if judged != expected || judge_answer(&answer)? != heard {
                let answered = judge_answer(&answer)?;
                pr_err!("{field:?} at {at}: {judged:?}, {answered:?}\n");
                return Err(EINVAL);
            }
            Ok(())
        })
    }

    #[test]
    fn refusals_have_a_text_and_an_errno() -> Result {
        let expected = [
            ("wrong version", EPROTO),
            ("wrong cluster", EPERM),
            ("unknown id", EPERM),
            ("wrong direction", EPERM),
            ("duplicate", EBUSY),
            ("wrong address", EPERM),
            ("administratively down", EHOSTDOWN),
            ("stopping", ESHUTDOWN),
            ("malformed greeting", EINVAL),
            ("stale greeting", EBUSY),
            ("too early", EBUSY),
        ];
        for (refusal, (text, errno)) in REFUSALS.into_iter().zip(expected) {
            let shown = CString::try_from_fmt(fmt!("{refusal}"))?;
            assert_eq!(shown.to_bytes(), text.as_bytes());
            assert_eq!(refusal.errno(), errno);
        }
        Ok(())
    }

    // ---- The node that is connected to.

    #[test]
    fn good_hello_is_accepted() -> Result {
        assert!(Hello::new()?.is_accepted()?);
        // Whichever incarnation it has a session with; with none, it has received nothing.
        for run in [1, HIGH_RUN, u64::MAX] {
            assert!(Hello::new()?.with(24, run.to_le_bytes()).is_accepted()?);
        }
        assert!(Hello::new()?.with(24, [0; 16]).is_accepted()?);
        Ok(())
    }

    /// What is wrong with a `Hello`.
    type Wrong = fn(&mut Hello);

    /// Every cause of a refusal, by precedence. All can be had at once.
    const CAUSES: [(Wrong, Option<Refusal>); 11] = [
        (|hello| write(&mut hello.bytes, 0, *b"HTTP"), None),
        (
            |hello| write(&mut hello.bytes, 4, [1, 0]),
            Some(Refusal::Version),
        ),
        (
            |hello| write(&mut hello.bytes, 6, [9]),
            Some(Refusal::Malformed),
        ),
        (
            |hello| write(&mut hello.bytes, 80, *b"prod-2"),
            Some(Refusal::Cluster),
        ),
        // It is for another node.
        (
            |hello| write(&mut hello.bytes, 10, [3, 0]),
            Some(Refusal::UnknownId),
        ),
        (|hello| hello.known = false, Some(Refusal::UnknownId)),
        // P10: it should have been connected to.
        (
            |hello| write(&mut hello.bytes, 8, [4, 0]),
            Some(Refusal::Direction),
        ),
        (
            |hello| hello.source = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 9)),
            Some(Refusal::Address),
        ),
        (|hello| hello.admin_down = true, Some(Refusal::AdminDown)),
        // There is nothing yet that it could be beside.
        (|hello| hello.main = false, Some(Refusal::Early)),
        (
            |hello| hello.alive = Some(LOW_RUN + 1),
            Some(Refusal::Duplicate),
        ),
    ];

    #[test]
    fn each_refusal_has_its_cause_and_the_first_is_told() -> Result {
        // Every set of causes.
        for set in 1_usize..1 << CAUSES.len() {
            let mut hello = Hello::for_bulk()?;
            let mut first = None;
            for (i, (wrong, refusal)) in CAUSES.into_iter().enumerate() {
                if set & 1 << i != 0 {
                    wrong(&mut hello);
                    first = first.or(Some(refusal));
                }
            }
            let expected = match first.flatten() {
                None => Reject::Garbage,
                Some(reason) => Reject::Refuse {
                    reason,
                    // Where the id is in another version is not known.
                    from: match reason {
                        Refusal::Version => None,
                        _ => Some(claimed_id(&hello.bytes)),
                    },
                },
            };
            if hello.judge()?.err() != Some(expected) {
                pr_err!("causes {set:#b}: {:?}\n", hello.judge()?.err());
                return Err(EINVAL);
            }
        }
        Ok(())
    }

    /// P10: the lower number connects, and every other direction is refused.
    #[test]
    fn lower_id_connects_to_higher() -> Result {
        const IDS: [NodeId; 6] = [0, 1, 2, 127, 254, 255];
        for from in IDS {
            for me in IDS {
                let said = hello(&identity(from, LOW_RUN)?, me, Channel::Main, STANDING);
                let judged = check_hello(&said, &identity(me, HIGH_RUN)?, HOME, |greeting| {
                    // A node is not among its own peers.
                    (greeting.peer.id != me).then_some(Claimed {
                        ip: HOME,
                        admin_down: false,
                        alive: None,
                        known: false,
                        resumable: None,
                    })
                });
                let refused = |reason| {
                    let from = Some(from);
                    Some(Reject::Refuse { reason, from })
                };
                let expected = match from.cmp(&me) {
                    core::cmp::Ordering::Less => None,
                    core::cmp::Ordering::Equal => refused(Refusal::UnknownId),
                    core::cmp::Ordering::Greater => refused(Refusal::Direction),
                };
                assert_eq!(judged.err(), expected);
                // It is the direction in which the state machines go.
                assert_eq!(expected.is_none(), Role::of(from, me) == Role::Connect);
            }
        }
        Ok(())
    }

    #[test]
    fn own_id_is_nobody_elses() -> Result {
        // Even if somebody took it for a peer's.
        let hello = Hello::new()?.with(8, HIGH.to_le_bytes());
        assert_eq!(hello.refusal()?, Some(Refusal::UnknownId));
        Ok(())
    }

    #[test]
    fn every_other_version_is_refused() -> Result {
        for version in [0, 1, 3, 0x0100, 0x0102, u16::MAX] {
            let mut hello = Hello::new()?;
            // Behind the version everything may be different.
            hello.bytes[8..].fill(0xee);
            let hello = hello.with(4, version.to_le_bytes());
            let expected = Reject::Refuse {
                reason: Refusal::Version,
                from: None,
            };
            assert_eq!(hello.judge()?.err(), Some(expected));
        }
        Ok(())
    }

    #[test]
    fn only_a_hello_is_a_hello() -> Result {
        for kind in 0..=u8::MAX {
            let hello = Hello::new()?.with(6, [kind]);
            let refusal = match kind {
                1 => None,
                // Of a peer with which there is no session.
                4 => Some(Refusal::Early),
                _ => Some(Refusal::Malformed),
            };
            assert_eq!(hello.is_accepted()?, refusal.is_none());
            assert_eq!(hello.refusal()?, refusal);
        }
        for reason in 1..=u8::MAX {
            let hello = Hello::new()?.with(7, [reason]);
            assert_eq!(hello.refusal()?, Some(Refusal::Malformed));
        }
        Ok(())
    }

    #[test]
    fn other_clusters_are_refused() -> Result {
        for name in ["prod-", "prod-11", "Prod-1", "x"] {
            let mut other = low()?;
            other.cluster = ClusterName::new(name.as_bytes()).ok_or(EINVAL)?;
            let mut said = Hello::new()?;
            said.bytes = hello(&other, HIGH, Channel::Main, STANDING);
            assert_eq!(said.refusal()?, Some(Refusal::Cluster));
        }
        Ok(())
    }

    #[test]
    fn address_is_the_peers_own() -> Result {
        let others = [
            IpAddr::V4(Ipv4Addr::new(10, 1, 0, 0)),
            IpAddr::V4(Ipv4Addr::new(11, 1, 0, 1)),
        ];
        for source in others {
            let mut hello = Hello::new()?;
            hello.source = source;
            assert_eq!(hello.refusal()?, Some(Refusal::Address));
        }
        // To a node at an address of the other family it comes from wherever it must.
        let mut hello = Hello::new()?;
        hello.source = IpAddr::V6(Ipv6Addr::LOCALHOST);
        assert!(hello.judge()?.is_ok());
        Ok(())
    }

    /// Who has no session has received nothing in it.
    #[test]
    fn session_and_what_was_received_fit() -> Result {
        let cases = [
            (0_u64, 0_u64, true),
            (0, 1, false),
            (0, u64::MAX, false),
            (1, 0, true),
            (u64::MAX, u64::MAX, true),
        ];
        for (with, received, good) in cases {
            let said = Hello::new()?
                .with(24, with.to_le_bytes())
                .with(32, received.to_le_bytes());
            assert_eq!(said.is_accepted()?, good);
        }
        Ok(())
    }

    /// What knows nothing of the session that there is was said before it began.
    #[test]
    fn stale_greeting_is_refused() -> Result {
        for (resumable, refusal) in [
            (None, None),
            (Some(true), None),
            (Some(false), Some(Refusal::Stale)),
        ] {
            let mut hello = Hello::new()?;
            hello.resumable = resumable;
            assert_eq!(hello.refusal()?, refusal);
            assert_eq!(hello.is_accepted()?, refusal.is_none());
        }
        Ok(())
    }

    /// The channel for bulk comes after the main one.
    #[test]
    fn early_greeting_is_refused() -> Result {
        for main in [false, true] {
            let mut said = Hello::new()?;
            said.main = main;
            assert!(said.is_accepted()?);
            let mut said = Hello::for_bulk()?;
            said.main = main;
            assert_eq!(said.refusal()?, (!main).then_some(Refusal::Early));
            let greeting = said.judge()?.ok();
            assert_eq!(greeting.map(|g| g.channel), main.then_some(Channel::Bulk));
        }
        Ok(())
    }

    /// P11: a peer that has lost its connection comes back while this node still believes in it; one
    /// that has restarted does so when the old connection is dead.
    #[test]
    fn other_incarnation_is_a_duplicate_while_alive() -> Result {
        // (what is alive, whether LOW_RUN is refused as its duplicate)
        let cases = [
            (None, false),
            (Some(LOW_RUN), false),
            (Some(LOW_RUN - 1), true),
            (Some(LOW_RUN + 1), true),
            (Some(HIGH_RUN), true),
            (Some(LOW_RUN ^ 1 << 63), true),
        ];
        for (alive, duplicate) in cases {
            let mut hello = Hello::new()?;
            hello.alive = alive;
            let refusal = duplicate.then_some(Refusal::Duplicate);
            assert_eq!(hello.refusal()?, refusal);
            assert_eq!(hello.is_accepted()?, !duplicate);
        }
        Ok(())
    }

    #[test]
    fn flipped_bit_of_a_hello_is_refused_or_understood() -> Result {
        use Refusal::*;
        for bit in 0..8 * GREETING_LEN {
            let byte = bit / 8;
            let mut hello = Hello::new()?;
            hello.bytes[byte] ^= 1 << (bit % 8);
            // Of all other ids there is none.
            hello.known = claimed_id(&hello.bytes) == LOW;
            let refusal = hello.refusal()?;
            let right = match byte {
                0..=3 => hello.judge()?.err() == Some(Reject::Garbage),
                4 | 5 => matches!(
                    hello.judge()?,
                    Err(Reject::Refuse {
                        reason: Version,
                        from: None
                    })
                ),
                6 | 7 | 9 | 11 => refusal == Some(Malformed),
                8 | 10 => refusal == Some(UnknownId),
                // What the peer says of itself is believed, if it makes sense, and to the letter.
                12..=15 if !sane_dead_ms(&hello.bytes) => refusal == Some(Malformed),
                12..=39 => hello.is_accepted()?,
                40..=79 => hello.is_accepted()? || refusal == Some(Malformed),
                _ => matches!(refusal, Some(Cluster | Malformed)),
            };
            if !right {
                pr_err!("bit {bit}: {:?}\n", hello.judge()?.err());
                return Err(EINVAL);
            }
        }
        Ok(())
    }

    #[test]
    fn garbage_is_refused_or_understood() -> Result {
        let mut random = Random(0x2545_f491_4f6c_dd1d);
        let mut accepted = 0;
        for round in 0..20_000 {
            let mut hello = Hello::new()?;
            if round % 4 == 0 {
                random.fill(&mut hello.bytes);
            }
            // Noise in some place of a good one.
            let start = random.below(GREETING_LEN);
            let len = random.below(16).min(GREETING_LEN - start);
            random.fill(&mut hello.bytes[start..start + len]);
            match hello.judge()? {
                Ok(greeting) => {
                    assert!(understood(&greeting, &hello.bytes));
                    accepted += 1;
                }
                Err(Reject::Garbage) => assert!(hello.bytes[..4] != *b"KCCM"),
                Err(Reject::Refuse { .. }) => {}
            }
        }
        assert!((100..19_000).contains(&accepted));
        Ok(())
    }

    // ---- The node that connects.

    #[test]
    fn good_answer_is_accepted() -> Result {
        assert_eq!(judge_answer(&answer()?)?, Ok(None));
        Ok(())
    }

    #[test]
    fn refusal_is_understood() -> Result {
        for reason in REFUSALS {
            let bytes = refuse(&high()?, reason);
            assert_eq!(judge_answer(&bytes)?, Ok(Some(reason)));
        }
        Ok(())
    }

    /// Only the first eight bytes of a refusal have their place in every version.
    #[test]
    fn refusal_from_another_version_is_understood() -> Result {
        for version in [0, 1, 0x0100, u16::MAX] {
            for reason in REFUSALS {
                let mut bytes = refuse(&high()?, reason);
                write(&mut bytes, 4, version.to_le_bytes());
                bytes[8..].fill(0xee);
                assert_eq!(judge_answer(&bytes)?, Ok(Some(reason)));
            }
        }
        Ok(())
    }

    #[test]
    fn refusal_without_a_known_reason_is_malformed() -> Result {
        for reason in (0..=u8::MAX).filter(|reason| !(1..=11).contains(reason)) {
            let mut bytes = refuse(&high()?, Refusal::Stopping);
            write(&mut bytes, 7, [reason]);
            assert_eq!(judge_answer(&bytes)?, Err(Refusal::Malformed));
        }
        Ok(())
    }

    /// What is wrong with an answer.
    type WrongAnswer = fn(&mut Bytes);

    #[test]
    fn each_wrong_answer_has_its_cause_and_the_first_is_told() -> Result {
        // By precedence. All can be had at once.
        let causes: [(WrongAnswer, Refusal); 7] = [
            (|bytes| write(bytes, 0, *b"HTTP"), Refusal::Malformed),
            (|bytes| write(bytes, 4, [1, 0]), Refusal::Version),
            // It is no answer.
            (|bytes| write(bytes, 6, [1]), Refusal::Malformed),
            (|bytes| write(bytes, 80, *b"prod-2"), Refusal::Cluster),
            // It is another node's.
            (|bytes| write(bytes, 8, [3, 0]), Refusal::UnknownId),
            // It is for another node, or for an earlier run of this one.
            (|bytes| write(bytes, 10, [3, 0]), Refusal::UnknownId),
            (|bytes| write(bytes, 24, [1; 8]), Refusal::UnknownId),
        ];
        for set in 1_usize..1 << causes.len() {
            let mut bytes = answer()?;
            let mut first = None;
            for (i, (wrong, refusal)) in causes.into_iter().enumerate() {
                if set & 1 << i != 0 {
                    wrong(&mut bytes);
                    first = first.or(Some(refusal));
                }
            }
            assert_eq!(judge_answer(&bytes)?.err(), first);
        }
        Ok(())
    }

    #[test]
    fn only_an_answer_is_an_answer() -> Result {
        for kind in 0..=u8::MAX {
            let mut bytes = answer()?;
            write(&mut bytes, 6, [kind]);
            let expected = match kind {
                2 => Ok(None),
                _ => Err(Refusal::Malformed),
            };
            assert_eq!(judge_answer(&bytes)?, expected);
        }
        for reason in 1..=u8::MAX {
            let mut bytes = answer()?;
            write(&mut bytes, 7, [reason]);
            assert_eq!(judge_answer(&bytes)?, Err(Refusal::Malformed));
        }
        Ok(())
    }

    #[test]
    fn flipped_bit_of_an_answer_is_refused_or_understood() -> Result {
        use Refusal::*;
        for bit in 0..8 * GREETING_LEN {
            let mut bytes = answer()?;
            bytes[bit / 8] ^= 1 << (bit % 8);
            let judged = judge_answer(&bytes)?;
            let right = match bit / 8 {
                0..=3 | 6 | 7 | 9 | 11 => judged == Err(Malformed),
                4 | 5 => judged == Err(Version),
                8 | 10 | 24..=31 => judged == Err(UnknownId),
                12..=15 if !sane_dead_ms(&bytes) => judged == Err(Malformed),
                12..=23 | 32..=39 => judged == Ok(None),
                40..=79 => matches!(judged, Ok(None) | Err(Malformed)),
                _ => matches!(judged, Err(Cluster | Malformed)),
            };
            if !right {
                pr_err!("bit {bit}: {judged:?}\n");
                return Err(EINVAL);
            }
        }
        Ok(())
    }

    #[test]
    fn garbage_answer_is_refused_or_understood() -> Result {
        let mut random = Random(0x6c07_8965_d1b5_4a33);
        let (mut welcomes, mut refusals) = (0, 0);
        for round in 0..20_000 {
            let mut bytes = answer()?;
            if round % 4 == 0 {
                random.fill(&mut bytes);
            }
            if round % 8 == 1 {
                write(&mut bytes, 6, [3, random.below(16) as u8]);
            }
            let start = random.below(GREETING_LEN);
            let len = random.below(16).min(GREETING_LEN - start);
            random.fill(&mut bytes[start..start + len]);
            match judge_answer(&bytes)? {
                Ok(None) => welcomes += 1,
                Ok(Some(reason)) => {
                    assert!(bytes[..4] == *b"KCCM" && bytes[6] == 3);
                    assert_eq!(bytes[7], reason as u8);
                    refusals += 1;
                }
                Err(_) => {}
            }
        }
        assert!((100..19_000).contains(&welcomes) && refusals > 100);
        Ok(())
    }
}
