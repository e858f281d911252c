// SPDX-License-Identifier: GPL-2.0

//! What a node shows under /sys/kernel/kccm/, and the administrator's knobs there.
//!
//! Documented, file by file, in `Documentation/ABI/sysfs-kernel-kccm`.

use crate::config::Addr;
use crate::conn::peer::{
    Counter,
    Peer,
    Stats, //
};
use crate::conn::state::State;
use crate::node::Node;
use crate::sys::clock;
use crate::sys::kobject::{
    Attr,
    Dir,
    Parent, //
};
use crate::sys::noio;
use core::fmt::Write;
use kernel::prelude::*;
use kernel::str::Formatter;
use kernel::sync::Arc;

/// A peer, and the node whose peer it is.
struct NodePeer {
    node: Arc<Node>,
    peer: Arc<Peer>,
}

/// The directories of a node. Dropped before the node is stopped.
pub(crate) struct Tree {
    // In this order they go: the inner ones first.
    _peers: KVec<Dir<NodePeer>>,
    _peers_dir: Dir<Node>,
    _node: Dir<Node>,
}

impl Tree {
    /// Makes them.
    pub(crate) fn new(node: &Arc<Node>) -> Result<Self> {
        let root = Dir::new(
            Parent::sys_kernel(),
            fmt!("kccm"),
            Some(node.clone()),
            &NODE,
        )?;
        let peers_dir = Dir::new(root.as_parent(), fmt!("peers"), None, &[])?;
        let mut peers = KVec::with_capacity(node.peers().len(), GFP_KERNEL)?;
        for peer in node.peers() {
            let object = NodePeer {
                node: node.clone(),
                peer: peer.clone(),
            };
            let dir = Dir::new(
                peers_dir.as_parent(),
                fmt!("{}", peer.id),
                Some(Arc::new(object, GFP_KERNEL)?),
                &PEER,
            )?;
            peers.push(dir, GFP_KERNEL)?;
        }
        Ok(Self {
            _peers: peers,
            _peers_dir: peers_dir,
            _node: root,
        })
    }
}

type Out<'a, 'b> = &'a mut Formatter<'b>;
type Shown = core::fmt::Result;

static NODE: [Attr<Node>; 7] = [
    Attr::read(c"node_id", |n, f| f.write_fmt(fmt!("{}\n", n.id()))),
    Attr::read(c"cluster", |n, f| {
        f.write_fmt(fmt!("{}\n", n.identity.cluster))
    }),
    Attr::read(c"incarnation", |n, f| {
        f.write_fmt(fmt!("{:016x}\n", n.identity.incarnation))
    }),
    Attr::read(c"stats", node_stats),
    Attr::read(c"key", |n, f| match n.transport.guard() {
        Some(guard) => f.write_fmt(fmt!("{}\n", guard.name())),
        None => f.write_str("none\n"),
    }),
    Attr::read(c"key_numbers", |n, f| match n.transport.guard() {
        Some(guard) => f.write_fmt(fmt!("{}\n", guard.numbers())),
        None => f.write_str("none\n"),
    }),
    Attr::write(c"rekey", store_rekey),
];

fn store_rekey(node: &Node, text: &str) -> Result {
    if text != "1" {
        return Err(EINVAL);
    }
    node.transport.guard().ok_or(ENOKEY)?.rekey()
}

fn node_stats(node: &Node, f: Out<'_, '_>) -> Shown {
    let (messages, receivers) = node.endpoint.waiting();
    let (jobs, threads) = node.pool.counts();
    let stats = &node.endpoint.stats;
    let up = node.peers().iter().filter(|p| p.is_up()).count();
    let guard = node.transport.guard();
    let [not_signed, mismatched, unknown] = guard.map_or([0; 3], |g| g.dropped().counts());
    for (name, value) in [
        ("peers", node.peers().len() as u64),
        ("peers_up", up as u64),
        ("messages_queued", stats.queued.get()),
        ("messages_handed_over", stats.handed_over.get()),
        ("messages_waiting", messages as u64),
        ("receivers_waiting", receivers as u64),
        ("calls_waiting", node.calls.waiting() as u64),
        ("handlers", node.handlers.count() as u64),
        ("short_handlers_slow", node.handlers.slow.get()),
        ("long_calls_waiting", jobs.into()),
        ("long_threads", threads.into()),
        ("refused_not_signed", not_signed),
        ("refused_other_secret", mismatched),
        ("refused_unknown_key", unknown),
    ] {
        f.write_fmt(fmt!("{} {}\n", name, value))?;
    }
    Ok(())
}

static PEER: [Attr<NodePeer>; 24] = [
    Attr::read(c"state", |p, f| {
        f.write_fmt(fmt!("{}\n", p.peer.snapshot().state))
    }),
    Attr::read(c"up", |p, f| {
        f.write_str(if p.peer.is_up() { "1\n" } else { "0\n" })
    }),
    Attr::read(c"session", |p, f| {
        f.write_fmt(fmt!("{:016x}\n", p.peer.snapshot().session))
    }),
    Attr::read(c"address", |p, f| {
        f.write_fmt(fmt!("{}\n", Addr(p.peer.addr)))
    }),
    Attr::read(c"incarnation", |p, f| {
        f.write_fmt(fmt!("{:016x}\n", p.peer.snapshot().incarnation))
    }),
    Attr::read(c"tx_messages", |p, f| sum(f, p, |s| &s.tx_messages)),
    Attr::read(c"rx_messages", |p, f| sum(f, p, |s| &s.rx_messages)),
    Attr::read(c"tx_rcalls", |p, f| sum(f, p, |s| &s.tx_rcalls)),
    Attr::read(c"rx_rcalls", |p, f| sum(f, p, |s| &s.rx_rcalls)),
    Attr::read(c"failed_rcalls", |p, f| sum(f, p, |s| &s.failed_rcalls)),
    Attr::read(c"tx_bytes", |p, f| sum(f, p, |s| &s.tx_bytes)),
    Attr::read(c"rx_bytes", |p, f| sum(f, p, |s| &s.rx_bytes)),
    Attr::read(c"attempts", |p, f| count(f, &p.peer.stats.attempts)),
    Attr::read(c"reconnects", |p, f| count(f, &p.peer.stats.reconnects)),
    Attr::read(c"bulk_state", bulk_state),
    Attr::read(c"bulk_reconnects", |p, f| match p.peer.bulk() {
        Some(bulk) => count(f, &bulk.stats.reconnects),
        None => f.write_str("0\n"),
    }),
    Attr::read(c"queued_bytes", |p, f| {
        let queued: u64 = p.peer.channels().map(|c| c.snapshot().queued).sum();
        f.write_fmt(fmt!("{queued}\n"))
    }),
    Attr::read(c"unacknowledged", |p, f| {
        let kept = p.peer.channels().map(|c| c.snapshot().kept);
        let [bytes, frames] = kept.fold([0, 0], |sum, kept| [sum[0] + kept[0], sum[1] + kept[1]]);
        f.write_fmt(fmt!("{frames} {bytes}\n"))
    }),
    Attr::read(c"key", key),
    Attr::read(c"last_error", |p, f| last_error(p, &p.peer, f)),
    Attr::read(c"bulk_last_error", |p, f| {
        last_error(p, p.peer.bulk().unwrap_or(&p.peer), f)
    }),
    Attr::read(c"next_attempt_ms", next_attempt),
    Attr::read_write(c"admin", show_admin, store_admin),
    Attr::write(c"control", store_control),
];

fn count(f: Out<'_, '_>, counter: &Counter) -> Shown {
    f.write_fmt(fmt!("{}\n", counter.get()))
}

/// Of both channels.
fn sum(f: Out<'_, '_>, p: &NodePeer, counter: impl Fn(&Stats) -> &Counter) -> Shown {
    let sum: u64 = p.peer.channels().map(|c| counter(&c.stats).get()).sum();
    f.write_fmt(fmt!("{sum}\n"))
}

fn bulk_state(p: &NodePeer, f: Out<'_, '_>) -> Shown {
    let Some(bulk) = p.peer.bulk() else {
        return f.write_str("unused\n");
    };
    let now = bulk.snapshot();
    // Of who is connected to, the other side may have asked for it.
    if bulk.is_wanted() || now.incarnation != 0 {
        f.write_fmt(fmt!("{}\n", now.state))
    } else {
        f.write_str("unused\n")
    }
}

/// The numbers of the keys that both channels are signed with, where they differ.
fn key(p: &NodePeer, f: Out<'_, '_>) -> Shown {
    let mut shown = None;
    for number in p.peer.channels().filter_map(|c| c.conn()?.key()) {
        match shown.replace(number) {
            None => f.write_fmt(fmt!("{number}"))?,
            Some(other) if other == number => {}
            Some(_) => f.write_fmt(fmt!(" {number}"))?,
        }
    }
    f.write_str(if shown.is_some() { "\n" } else { "none\n" })
}

fn last_error(p: &NodePeer, peer: &Peer, f: Out<'_, '_>) -> Shown {
    let now = peer.snapshot();
    if p.peer.snapshot().state == State::Down {
        return f.write_str("taken down by the administrator\n");
    }
    match (now.last_refusal, now.last_error) {
        (Some(refusal), _) => f.write_fmt(fmt!("refused: {refusal}\n")),
        (None, Some(error)) => match remark(p).filter(|_| error == ETIMEDOUT) {
            Some(remark) => f.write_fmt(fmt!("{error:?}: {remark}\n")),
            None => f.write_fmt(fmt!("{error:?}\n")),
        },
        (None, None) => f.write_str("none\n"),
    }
}

/// What the network knows of an attempt that got no answer.
fn remark(p: &NodePeer) -> Option<&'static str> {
    p.node.transport.guard()?.remark(&p.peer.addr)
}

fn next_attempt(p: &NodePeer, f: Out<'_, '_>) -> Shown {
    match p.peer.snapshot().next_attempt {
        Some(at) => f.write_fmt(fmt!("{}\n", at.saturating_sub(clock::now()))),
        None => f.write_str("none\n"),
    }
}

fn show_admin(p: &NodePeer, f: Out<'_, '_>) -> Shown {
    let down = p.peer.snapshot().state == State::Down;
    f.write_str(if down { "down\n" } else { "up\n" })
}

fn store_admin(p: &NodePeer, text: &str) -> Result {
    let down = match text {
        "down" => true,
        "up" => false,
        _ => return Err(EINVAL),
    };
    let _noio = noio::Scope::enter();
    p.node.set_admin_down(&p.peer, down);
    Ok(())
}

fn store_control(p: &NodePeer, text: &str) -> Result {
    let _noio = noio::Scope::enter();
    match text {
        "disconnect" => p.node.disconnect(&p.peer, false),
        "reconnect" => p.node.disconnect(&p.peer, true),
        _ => return Err(EINVAL),
    }
    Ok(())
}
