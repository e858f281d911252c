// SPDX-License-Identifier: GPL-2.0

//! Nodes of KCCM in this kernel, each at a loopback address of its own.

use super::ffi;
use crate::config::{
    ClusterName,
    Config,
    Limits,
    Member,
    NodeId,
    MAX_NODES, //
};
use crate::conn::tcp::Tcp;
use crate::node::{
    Node,
    Running, //
};
use crate::rcall::handlers::{
    Call,
    Class,
    Handler, //
};
use crate::sys::net::Net;
use crate::sys::owner::Owner;
use crate::sys::wait::Timeout;
use core::net::{
    IpAddr,
    Ipv4Addr,
    SocketAddr, //
};
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};
use kernel::sync::Arc;

/// How long anything may take that is not expected to fail. It ends a measurement that hangs.
pub(super) const SOON: Timeout = Timeout::After(60_000);

/// The classes of handlers that are measured, by their number in `nodes.h`.
const HANDLERS: &[(u32, Class)] = &[
    (ffi::SHORT, Class::Short),
    (ffi::LONG, Class::Long),
    (ffi::SOFTIRQ, Class::Softirq), //
];

/// So that nothing that is left of one cluster can be taken for another's.
static NEXT_PORT: Atomic<u32> = Atomic::new(10_000);

/// The calls without reply that node 1 has run.
type Ran = Arc<Atomic<u64>>;

/// Nodes that have been started.
pub(super) struct Nodes {
    running: KVec<Running>,
    ran: Ran,
}

/// Where a node lives.
fn member(id: NodeId, port: u16) -> Member {
    let ip = Ipv4Addr::from_bits(Ipv4Addr::new(127, 0, 1, 1).to_bits() + u32::from(id));
    Member {
        id,
        addr: SocketAddr::new(IpAddr::V4(ip), port),
    }
}

/// Starts a node with the module's defaults.
fn start(me: Member, members: KVec<Member>) -> Result<Running> {
    let config = Config {
        me,
        members,
        cluster: ClusterName::new(b"bench").ok_or(EINVAL)?,
        limits: Limits {
            // How long a handler takes is what the measurement says.
            short_warn_us: u32::MAX,
            ..Limits::DEFAULT
        },
    };
    let tcp = Tcp::new(Net::current(), None)?;
    Running::start_on(config, KBox::new(tcp, GFP_KERNEL)?)
}

/// What each handler does: nothing, with a reply as long as its arguments.
fn reply(ran: &Ran, call: &mut Call<'_>) -> i32 {
    ffi::serve();
    if call.reply.is_some() {
        call.reply_len = call.args.len();
    } else {
        ran.fetch_add(1, Relaxed);
    }
    0
}

/// The same with its arguments for a reply.
fn echo(call: &mut Call<'_>) -> i32 {
    let args = call.args;
    call.reply_len = args.len();
    if let Some(reply) = call.reply.as_mut().and_then(|r| r.get_mut(..args.len())) {
        reply.copy_from_slice(args);
    }
    0
}

/// A handler that may be called by any node.
fn handler(
    func: u32,
    class: Class,
    function: impl Fn(&mut Call<'_>) -> i32 + Send + Sync + 'static,
) -> Result<Handler> {
    Ok(Handler {
        func,
        class,
        name: CString::try_from(c"bench")?,
        max_args: ffi::MAX_SIZE,
        owner: Owner::NONE,
        function: KBox::new(function, GFP_KERNEL)?,
    })
}

impl Nodes {
    fn new(count: usize) -> Result<Self> {
        if count == 0 || count > MAX_NODES {
            return Err(EINVAL);
        }
        Ok(Self {
            running: KVec::with_capacity(count, GFP_KERNEL)?,
            ran: Arc::new(Atomic::new(0), GFP_KERNEL)?,
        })
    }

    /// A cluster of so many nodes, connected. Node 1 has the handlers.
    pub(super) fn cluster(count: usize) -> Result<Self> {
        let mut nodes = Self::new(count)?;
        let port = NEXT_PORT.fetch_add(1, Relaxed) as u16;
        for id in 0..count as NodeId {
            let mut members = KVec::with_capacity(count, GFP_KERNEL)?;
            for other in 0..count as NodeId {
                members.push(member(other, port), GFP_KERNEL)?;
            }
            let running = start(member(id, port), members)?;
            nodes.running.push(running, GFP_KERNEL)?;
        }
        if let Some(called) = nodes.running.get(1) {
            for &(func, class) in HANDLERS {
                let (node, ran) = (called.node(), nodes.ran.clone());
                node.register(handler(func, class, move |call| reply(&ran, call))?)?;
                node.register(handler(func | ffi::ECHO, class, echo)?)?;
            }
        }
        for running in &nodes.running {
            running.node().wait_up(None, SOON)?;
        }
        Ok(nodes)
    }

    /// So many clusters of one.
    pub(super) fn alone(count: usize) -> Result<Self> {
        let mut nodes = Self::new(count)?;
        for id in 0..count as NodeId {
            let port = NEXT_PORT.fetch_add(1, Relaxed) as u16;
            let mut members = KVec::with_capacity(1, GFP_KERNEL)?;
            members.push(member(id, port), GFP_KERNEL)?;
            nodes
                .running
                .push(start(member(id, port), members)?, GFP_KERNEL)?;
        }
        Ok(nodes)
    }

    /// One of the nodes.
    pub(super) fn node(&self, id: usize) -> Result<&Node> {
        Ok(self.running.get(id).ok_or(ENODEV)?.node())
    }

    /// How many calls without reply node 1 has run.
    pub(super) fn ran(&self) -> u64 {
        self.ran.load(Relaxed)
    }
}
