// SPDX-License-Identifier: GPL-2.0

//! A greeting is accepted, or refused for the first of the reasons, as `conn/hello.rs` says, and
//! what was accepted is what was said. Whatever is answered is understood.

use crate::config::{
    ClusterName,
    NodeId, //
};
use crate::conn::frame::Bounds;
use crate::conn::hello::{
    check_answer,
    check_hello,
    claimed_id,
    hello,
    refuse,
    welcome,
    Answer,
    Bytes,
    Channel,
    Claimed,
    Greeting,
    Identity,
    Refusal,
    Reject,
    Standing, //
};
use crate::script::Script;
use core::net::{
    IpAddr,
    Ipv4Addr,
    Ipv6Addr, //
};

/// A greeting, with the fields that are written in it.
pub(super) struct Fields {
    pub(super) magic: [u8; 4],
    pub(super) version: u16,
    pub(super) kind: u8,
    pub(super) reason: u8,
    pub(super) from: u16,
    pub(super) to: u16,
    dead_ms: u32,
    incarnation: u64,
    /// The incarnation of `to`, and what has been received and granted in the session with it.
    pub(super) standing: Standing,
    max_message: u32,
    max_rcall: u32,
    windows: [u64; 2],
    pub(super) cluster: [u8; 64],
}

impl Fields {
    pub(super) fn of(bytes: &Bytes) -> Self {
        let mut script = Script::new(bytes);
        let mut fields = Self {
            magic: script.array(),
            version: script.u16(),
            kind: script.u8(),
            reason: script.u8(),
            from: script.u16(),
            to: script.u16(),
            dead_ms: script.u32(),
            incarnation: script.u64(),
            standing: Standing {
                with: script.u64(),
                received: script.u64(),
                granted: [0; 2],
            },
            max_message: script.u32(),
            max_rcall: script.u32(),
            windows: [script.u64(), script.u64()],
            cluster: [0; 64],
        };
        fields.standing.granted = [script.u64(), script.u64()];
        fields.cluster = script.array();
        fields
    }

    /// Whether what it says of its sender can be.
    pub(super) fn sane(&self) -> bool {
        // The longest frame costs no more than three quarters of its window.
        let fits = |cost: u128, window: u64| 4 * cost <= 3 * u128::from(window);
        let [message, rcall] = [self.max_message, self.max_rcall].map(u128::from);
        let len = self.cluster.iter().take_while(|&&b| b != 0).count();
        let (name, padding) = self.cluster.split_at(len);
        self.from < 256
            && self.to < 256
            && self.incarnation != 0
            && (100..=3_600_000).contains(&self.dead_ms)
            && fits(256 + message, self.windows[0])
            && fits(256 + 2 * rcall, self.windows[1])
            && self.windows.into_iter().max() <= Some(1 << 40)
            && (self.standing.with != 0 || self.standing.received == 0)
            && len > 0
            && name.iter().all(|b| (b'!'..=b'~').contains(b))
            && padding.iter().all(|&b| b == 0)
    }

    /// Whether that is what was understood.
    pub(super) fn says(&self, greeting: &Greeting) -> bool {
        let peer = &greeting.peer;
        peer.id == self.from
            && *peer.cluster.wire() == self.cluster
            && peer.incarnation == self.incarnation
            && peer.dead_ms == self.dead_ms
            && peer.bounds.message == self.max_message
            && peer.bounds.rcall == self.max_rcall
            && peer.windows == self.windows
            && greeting.standing == self.standing
    }
}

/// A node that is in order.
pub(super) fn any_node(script: &mut Script<'_>) -> Identity {
    const IDS: [NodeId; 6] = [0, 1, 2, 127, 254, 255];
    const NAMES: [&[u8]; 3] = [b"kccm", b"k", &[b'k'; ClusterName::MAX]];
    const RUNS: [u64; 3] = [1, 0x0123_4567_89ab_cdef, u64::MAX];
    let Some(cluster) = ClusterName::new(script.pick(&NAMES)) else {
        panic!("no name");
    };
    Identity {
        id: script.pick(&IDS),
        cluster,
        incarnation: script.pick(&RUNS),
        dead_ms: 3000,
        bounds: Bounds {
            message: 16 << 20,
            rcall: 1 << 20,
        },
        windows: [32 << 20, 8 << 20],
    }
}

fn any_ip(script: &mut Script<'_>) -> IpAddr {
    const IPS: [IpAddr; 4] = [
        IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1)),
        IpAddr::V4(Ipv4Addr::new(10, 1, 0, 2)),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3)),
    ];
    script.pick(&IPS)
}

/// What is known of the sender, if there is such a peer.
fn any_claimed(script: &mut Script<'_>) -> Option<Claimed> {
    let (unknown, admin_down) = (script.bit(), script.bit());
    let alive = script.bit().then(|| script.number());
    let resumable = script.bit().then(|| script.bit());
    let known = script.bit();
    let ip = any_ip(script);
    (!unknown).then_some(Claimed {
        ip,
        admin_down,
        alive,
        known,
        resumable,
    })
}

/// Any place in a session.
pub(super) fn any_standing(script: &mut Script<'_>) -> Standing {
    Standing {
        with: script.number(),
        received: script.number(),
        granted: [script.number(), script.number()],
    }
}

/// Writes over a greeting what the rest of the script says: few bytes in a few places, or all of it.
pub(super) fn spoil(bytes: &mut Bytes, script: &mut Script<'_>) {
    while script.more() {
        let start = usize::from(script.u8()) % bytes.len();
        let n = usize::from(script.u8()).min(bytes.len() - start);
        let spoiled = script.bytes(n);
        bytes[start..][..spoiled.len()].copy_from_slice(spoiled);
    }
}

/// Whether a greeting is to be accepted: every reason against it, and the first one counts.
fn judgement(
    fields: &Fields,
    me: &Identity,
    source: IpAddr,
    claimed: Option<&Claimed>,
) -> Result<(), Reject> {
    let nowhere_near = |ip: IpAddr| ip != source && ip.is_ipv4() == source.is_ipv4();
    let is_bulk = fields.kind == 4;
    let sane = fields.sane() && (fields.kind == 1 || is_bulk) && fields.reason == 0;
    let reasons = [
        (fields.version != 2, Refusal::Version),
        (!sane, Refusal::Malformed),
        (fields.cluster != *me.cluster.wire(), Refusal::Cluster),
        (
            fields.to != me.id || fields.from == me.id || claimed.is_none(),
            Refusal::UnknownId,
        ),
        (fields.from > me.id, Refusal::Direction),
        (
            claimed.is_some_and(|c| nowhere_near(c.ip)),
            Refusal::Address,
        ),
        (claimed.is_some_and(|c| c.admin_down), Refusal::AdminDown),
        (claimed.is_some_and(|c| is_bulk && !c.known), Refusal::Early),
        (
            claimed.is_some_and(|c| c.alive.unwrap_or(fields.incarnation) != fields.incarnation),
            Refusal::Duplicate,
        ),
        (
            claimed.is_some_and(|c| c.resumable == Some(false)),
            Refusal::Stale,
        ),
    ];
    if fields.magic != *b"KCCM" {
        return Err(Reject::Garbage);
    }
    match reasons.into_iter().find(|reason| reason.0) {
        None => Ok(()),
        // Where the id is in another version is not known.
        Some((_, Refusal::Version)) => Err(Reject::Refuse {
            reason: Refusal::Version,
            from: None,
        }),
        Some((_, reason)) => Err(Reject::Refuse {
            reason,
            from: Some(fields.from),
        }),
    }
}

pub(crate) fn run(input: &[u8]) {
    let mut script = Script::new(input);
    let (me, other) = (any_node(&mut script), any_node(&mut script));
    let source = any_ip(&mut script);
    let claimed = any_claimed(&mut script);
    // One that is as it should be, or nearly so.
    let channel = script.pick(&[Channel::Main, Channel::Bulk]);
    let mut bytes = hello(&other, me.id, channel, any_standing(&mut script));
    spoil(&mut bytes, &mut script);
    let fields = Fields::of(&bytes);
    assert_eq!(claimed_id(&bytes), fields.from);

    let right = judgement(&fields, &me, source, claimed.as_ref());
    let judged = check_hello(&bytes, &me, source, |greeting| {
        let id = greeting.peer.id;
        assert!(fields.says(greeting) && id < 256 && id != me.id);
        claimed
    });
    assert_eq!(judged.as_ref().map(|_| ()).map_err(|why| *why), right);

    match judged {
        Ok(greeting) => {
            assert!(fields.says(&greeting));
            let peer = greeting.peer;
            let again = hello(&peer, me.id, greeting.channel, greeting.standing);
            assert_eq!(again, bytes);
            let answer = welcome(&me, &peer, any_standing(&mut Script::new(input)));
            match check_answer(&answer, &peer, me.id) {
                Ok(Answer::Welcome(back)) => assert!(Fields::of(&answer).says(&back)),
                _ => panic!("the welcome is not one"),
            }
        }
        Err(Reject::Refuse { reason, .. }) => {
            // Whoever it is.
            let answer = refuse(&me, reason);
            match check_answer(&answer, &other, me.id) {
                Ok(Answer::Refused(back)) => assert_eq!(back, reason),
                _ => panic!("the refusal is not one"),
            }
        }
        Err(Reject::Garbage) => {}
    }
}
