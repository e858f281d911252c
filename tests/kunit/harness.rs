// SPDX-License-Identifier: GPL-2.0

//! What the suites have in common: clusters in one kernel, threads, waiting.
//!
//! A failed KUnit assertion ends the test's thread without running destructors, which would leave
//! nodes behind. So tests return errors instead, and what finds one says where in the log.

use super::keys::Chest;
use super::net::{
    Below,
    Gate,
    Memory,
    Spaces, //
};
use super::sys;
use crate::config::{
    ClusterName,
    Config,
    Limits,
    Member,
    NodeId, //
};
use crate::conn::hello::Identity;
use crate::node::{
    Node,
    Running, //
};
use crate::rcall::handlers::{
    Call,
    Class,
    Handler, //
};
use crate::rcall::{
    Failure,
    Success, //
};
use crate::sendrecv::{
    Info,
    STARVED, //
};
use crate::sys::clock;
use crate::sys::clock::Millis;
use crate::sys::owner::Owner;
use crate::sys::thread::Thread;
use crate::sys::wait::{
    OneShot,
    Timeout,
    WaitQueue, //
};
use core::net::{
    IpAddr,
    Ipv4Addr,
    Ipv6Addr,
    SocketAddr, //
};
use core::panic::Location;
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::atomic::{
    Acquire,
    Atomic,
    Relaxed,
    Release, //
};
use kernel::sync::{
    new_mutex,
    static_lock_class,
    Arc,
    Mutex, //
};

/// How much longer times must be in a kernel that checks itself, which is slow.
pub(super) const SLOWNESS: u64 = if cfg!(CONFIG_KASAN) {
    5
} else if cfg!(CONFIG_PROVE_LOCKING) {
    3
} else {
    1
};

/// So many times, but fewer in a kernel that checks itself.
pub(super) const fn often(times: u64) -> u64 {
    times
        / if cfg!(CONFIG_KASAN) {
            20
        } else if cfg!(CONFIG_PROVE_LOCKING) {
            5
        } else {
            1
        }
}

/// How long anything may take that is not expected to fail, milliseconds. It ends a test that hangs;
/// whether the machine is fast is not what is tested.
pub(super) const SOON_MS: Millis = 60_000;

/// The same, to wait.
pub(super) const SOON: Timeout = Timeout::After(SOON_MS);

// ---- Saying what went wrong, and where.

/// Returns an error from the test unless the condition holds.
macro_rules! check {
    ($condition:expr $(,)?) => {
        if !$condition {
            pr_err!(
                "{}:{}: not true: {}\n",
                file!(),
                line!(),
                stringify!($condition)
            );
            return Err(EBADE);
        }
    };
}

/// Returns an error from the test unless both are equal.
macro_rules! check_eq {
    ($left:expr, $right:expr $(,)?) => {
        match (&$left, &$right) {
            (left, right) => {
                if *left != *right {
                    pr_err!(
                        "{}:{}: {} is {:?}, not {:?}\n",
                        file!(),
                        line!(),
                        stringify!($left),
                        left,
                        right
                    );
                    return Err(EBADE);
                }
            }
        }
    };
}

pub(super) use {
    check,
    check_eq, //
};

#[track_caller]
fn complain(what: &str, error: Error) -> Error {
    let place = Location::caller();
    pr_err!("{}:{}: {}: {:?}\n", place.file(), place.line(), what, error);
    error
}

/// Says where an unexpected error came up.
pub(super) trait Here<T> {
    /// The result itself, after an error has been logged.
    fn here(self) -> Result<T>;
}

impl<T, E: Into<Error>> Here<T> for Result<T, E> {
    #[track_caller]
    fn here(self) -> Result<T> {
        match self {
            Ok(value) => Ok(value),
            Err(e) => Err(complain("unexpected", e.into())),
        }
    }
}

// ---- Waiting.

/// Does nothing for at least so long, by the clock.
pub(super) fn pause(ms: Millis) {
    let until = clock::now() + ms;
    while clock::now() < until {
        pin_init::stack_pin_init!(let never = OneShot::new());
        let _ = never.wait(Timeout::After(until.saturating_sub(clock::now())));
    }
}

/// Does what is to give up after so long; it may not do so before.
#[track_caller]
pub(super) fn waits<T>(ms: Millis, body: impl FnOnce() -> T) -> Result<T> {
    let begin = sys::ticks();
    let result = body();
    // Rounded up, and begun within a tick.
    if sys::ticks().wrapping_sub(begin) + 1 < clock::jiffies(ms) {
        return Err(complain("has not waited long enough", ETIME));
    }
    Ok(result)
}

/// Waits until something holds that nobody announces.
#[track_caller]
pub(super) fn eventually(mut condition: impl FnMut() -> bool) -> Result {
    let begin = clock::now();
    while !condition() {
        if clock::now() - begin > SOON_MS {
            return Err(complain("has not come true", ETIMEDOUT));
        }
        pause(1);
    }
    Ok(())
}

/// Watches for so long that something holds.
#[track_caller]
pub(super) fn steadily(ms: Millis, mut condition: impl FnMut() -> bool) -> Result {
    let begin = clock::now();
    while clock::now() - begin < ms {
        if !condition() {
            return Err(complain("has ceased to be true", EBADE));
        }
        pause(5);
    }
    Ok(())
}

/// Holds threads back until it is opened, which at the latest its going out of scope does.
pub(super) struct Latch(Arc<Barrier>);

/// What threads are held back by.
#[pin_data]
pub(super) struct Barrier {
    open: Atomic<bool>,
    held: Atomic<u32>,
    #[pin]
    changed: WaitQueue,
}

impl Latch {
    /// A closed one.
    pub(super) fn new() -> Result<Self> {
        let barrier = Arc::pin_init(
            pin_init!(Barrier {
                open: Atomic::new(false),
                held: Atomic::new(0),
                changed <- WaitQueue::new(c"Barrier::changed", static_lock_class!()),
            }),
            GFP_KERNEL,
        )?;
        Ok(Self(barrier))
    }

    /// For a thread to be held back by.
    pub(super) fn barrier(&self) -> Arc<Barrier> {
        self.0.clone()
    }

    /// Lets everybody go.
    pub(super) fn open(&self) {
        self.0.open.store(true, Release);
        self.0.changed.notify_all();
    }

    /// How many are being held back.
    pub(super) fn held(&self) -> u32 {
        self.0.held.load(Acquire)
    }

    /// Waits until so many are being held back.
    #[track_caller]
    pub(super) fn wait_held(&self, count: u32) -> Result {
        let reached = || (self.held() == count).then_some(());
        match self.0.changed.wait_until(SOON, reached) {
            Ok(()) => Ok(()),
            Err(e) => Err(complain("not held back", e)),
        }
    }
}

impl Drop for Latch {
    fn drop(&mut self) {
        self.open();
    }
}

impl Barrier {
    /// Waits until it is opened.
    pub(super) fn pass(&self) {
        self.held.fetch_add(1, Relaxed);
        self.changed.notify_all();
        self.changed.wait_unkillable(|| self.open.load(Acquire));
        self.held.fetch_sub(1, Relaxed);
        self.changed.notify_all();
    }
}

// ---- Threads.

/// A thread and what it returns.
pub(super) struct Job<T: Send + Unpin + 'static> {
    thread: Option<Thread>,
    handle: sys::Handle,
    shared: Arc<Shared<T>>,
}

#[pin_data]
struct Shared<T> {
    #[pin]
    handle: Mutex<Option<sys::Handle>>,
    #[pin]
    result: Mutex<Option<T>>,
    done: Atomic<bool>,
    #[pin]
    changed: WaitQueue,
}

/// Runs something in a thread of its own.
pub(super) fn spawn<T: Send + Unpin + 'static>(
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<Job<T>> {
    let shared = Arc::pin_init(
        pin_init!(Shared {
            handle <- new_mutex!(None, "Shared::handle"),
            result <- new_mutex!(None, "Shared::result"),
            done: Atomic::new(false),
            changed <- WaitQueue::new(c"Shared::changed", static_lock_class!()),
        }),
        GFP_KERNEL,
    )?;
    let theirs = shared.clone();
    let thread = Thread::spawn(fmt!("kccm-test"), move || {
        sys::allow_kill();
        *theirs.handle.lock() = Some(sys::Handle::current());
        theirs.changed.notify_all();
        let result = body();
        *theirs.result.lock() = Some(result);
        theirs.done.store(true, Release);
        theirs.changed.notify_all();
    })?;
    let mut handle = None;
    eventually(|| {
        handle = shared.handle.lock().take();
        handle.is_some()
    })?;
    Ok(Job {
        thread: Some(thread),
        handle: handle.ok_or(EIO)?,
        shared,
    })
}

impl<T: Send + Unpin + 'static> Job<T> {
    /// Whether it has returned.
    pub(super) fn is_done(&self) -> bool {
        self.shared.done.load(Acquire)
    }

    /// Waits until it waits for what it will not get without our help.
    #[track_caller]
    pub(super) fn wait_asleep(&self) -> Result {
        eventually(|| self.handle.waits())
    }

    /// Kills it.
    pub(super) fn kill(&self) {
        self.handle.kill();
    }

    fn wait(&self, timeout: Timeout) -> Result {
        let done = || self.is_done().then_some(());
        self.shared.changed.wait_until(timeout, done)
    }

    /// What it returns.
    #[track_caller]
    pub(super) fn join(self) -> Result<T> {
        if let Err(e) = self.wait(SOON) {
            return Err(complain("a thread does not end", e));
        }
        let result = self.shared.result.lock().take();
        result.ok_or(EIO)
    }
}

impl<T: Send + Unpin + 'static> Drop for Job<T> {
    fn drop(&mut self) {
        let thread = self.thread.take();
        if self.wait(Timeout::After(1000)).is_err() {
            // The test has failed, and what the thread waits for may only end with the cluster. It
            // must not be waited for, and this module must not go any more.
            pr_err!("a thread is left behind\n");
            core::mem::forget((thread, sys::this_module().pin()));
        }
    }
}

// ---- Clusters.

/// What a cluster is to be like.
pub(super) struct Plan {
    /// How many nodes.
    pub(super) count: NodeId,
    /// The bounds of all nodes.
    pub(super) limits: Limits,
    /// What some nodes have otherwise.
    pub(super) adjust: fn(NodeId, &mut Limits),
    /// Where they live.
    pub(super) ip: fn(NodeId) -> IpAddr,
    /// What is below them.
    pub(super) below: Below,
}

/// All nodes have the same address.
pub(super) fn shared_ip(_: NodeId) -> IpAddr {
    IpAddr::V4(Ipv4Addr::LOCALHOST)
}

/// The same, of the other family.
pub(super) fn shared_ip6(_: NodeId) -> IpAddr {
    IpAddr::V6(Ipv6Addr::LOCALHOST)
}

/// Each node has an address to itself.
pub(super) fn own_ip(id: NodeId) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, id as u8 + 1))
}

impl Plan {
    /// So many nodes with the module's bounds, but for those of time: attempts in quick succession,
    /// and patience.
    pub(super) fn of(count: NodeId) -> Self {
        Self {
            count,
            limits: Limits {
                backoff_min_ms: 10,
                backoff_max_ms: 100,
                // What is not about time shall not depend on it.
                short_warn_us: 60_000_000,
                dead_ms: 60_000,
                handshake_ms: 60_000,
                ..Limits::DEFAULT
            },
            adjust: |_, _| {},
            ip: shared_ip,
            below: Below::Tcp,
        }
    }

    /// With small messages, and room for seven of the longest from each peer.
    pub(super) fn small(count: NodeId) -> Self {
        let mut plan = Self::of(count);
        plan.limits.max_message = SMALL_MESSAGE as u32;
        plan.limits.queue_bytes = 32 << 10;
        plan
    }

    /// With a gate below each node, and addresses to tell them by.
    pub(super) fn gated(count: NodeId) -> Result<Self> {
        let mut gates = KVec::new();
        for _ in 0..count {
            gates.push(Gate::new()?, GFP_KERNEL)?;
        }
        let mut plan = Self::of(count);
        plan.ip = own_ip;
        plan.below = Below::Gated(gates);
        Ok(plan)
    }

    /// Two, each in a network namespace of its own.
    pub(super) fn apart() -> Result<Self> {
        let mut plan = Self::of(2);
        plan.ip = Spaces::ip;
        plan.below = Below::Apart(Spaces::new()?);
        Ok(plan)
    }

    /// Without sockets.
    pub(super) fn in_memory(count: NodeId, memory: &Arc<Memory>) -> Self {
        let mut plan = Self::of(count);
        plan.below = Below::Memory(memory.clone());
        plan
    }
}

/// The longest message under [`Plan::small`].
pub(super) const SMALL_MESSAGE: usize = 4096;

/// How many of those are let through.
pub(super) const SMALL_ROOM: usize = 7;

struct Slot {
    running: Option<Running>,
    node: Option<Arc<Node>>,
}

/// The nodes 0 to `count` of a cluster.
pub(super) struct Cluster {
    plan: Plan,
    port: u16,
    slots: KVec<Slot>,
}

/// So that nothing that is left of one cluster can be taken for another's.
static NEXT_PORT: Atomic<u32> = Atomic::new(20_000);

impl Cluster {
    /// A cluster of so many nodes, connected.
    #[track_caller]
    pub(super) fn of(count: NodeId) -> Result<Self> {
        Self::new(Plan::of(count))
    }

    /// A cluster that has been connected.
    #[track_caller]
    pub(super) fn new(plan: Plan) -> Result<Self> {
        let mut cluster = Self::idle(plan)?;
        for id in 0..cluster.plan.count {
            cluster.start(id).here()?;
        }
        cluster.connected()?;
        Ok(cluster)
    }

    /// A cluster of nodes that have not been started.
    pub(super) fn idle(plan: Plan) -> Result<Self> {
        let mut slots = KVec::new();
        for _ in 0..plan.count {
            let slot = Slot {
                running: None,
                node: None,
            };
            slots.push(slot, GFP_KERNEL)?;
        }
        let port = NEXT_PORT.fetch_add(plan.count.into(), Relaxed) as u16;
        Ok(Self { plan, port, slots })
    }

    /// Where a node listens.
    pub(super) fn addr(&self, id: NodeId) -> SocketAddr {
        SocketAddr::new((self.plan.ip)(id), self.port + id)
    }

    /// What a node is told.
    pub(super) fn config(&self, id: NodeId) -> Result<Config> {
        let mut members = KVec::new();
        for id in 0..self.plan.count {
            let addr = self.addr(id);
            members.push(Member { id, addr }, GFP_KERNEL)?;
        }
        let mut limits = self.plan.limits;
        (self.plan.adjust)(id, &mut limits);
        Ok(Config {
            me: members[usize::from(id)],
            members,
            cluster: ClusterName::new(b"kunit").ok_or(EINVAL)?,
            limits,
        })
    }

    /// What a node says of itself that no code of ours runs.
    pub(super) fn stranger(&self, id: NodeId, incarnation: u64) -> Result<Identity> {
        let real = self.nodes().next().ok_or(EINVAL)?;
        Ok(Identity {
            id,
            incarnation,
            ..real.identity
        })
    }

    /// Where a node's connections come from.
    pub(super) fn ip(&self, id: NodeId) -> IpAddr {
        (self.plan.ip)(id)
    }

    /// Starts a node.
    pub(super) fn start(&mut self, id: NodeId) -> Result {
        let below = self.plan.below.transport(id)?;
        let running = Running::start_on(self.config(id)?, below)?;
        self.slots[usize::from(id)] = Slot {
            node: Some(running.node().clone()),
            running: Some(running),
        };
        Ok(())
    }

    /// Stops a node; returns when nothing of it runs any more.
    pub(super) fn stop(&mut self, id: NodeId) {
        drop(self.take(id));
    }

    /// Takes a node out, to be stopped by whoever gets it.
    pub(super) fn take(&mut self, id: NodeId) -> Option<Running> {
        self.slots[usize::from(id)].node = None;
        self.slots[usize::from(id)].running.take()
    }

    /// A node that has been started.
    pub(super) fn node(&self, id: NodeId) -> Result<Arc<Node>> {
        self.slots[usize::from(id)].node.clone().ok_or(ENODEV)
    }

    /// The nodes that have been started.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.slots.iter().filter_map(|slot| slot.node.as_ref())
    }

    /// The nodes 0 and 1.
    pub(super) fn pair(&self) -> Result<(Arc<Node>, Arc<Node>)> {
        Ok((self.node(0)?, self.node(1)?))
    }

    /// The nodes 0, 1 and 2.
    pub(super) fn trio(&self) -> Result<(Arc<Node>, Arc<Node>, Arc<Node>)> {
        Ok((self.node(0)?, self.node(1)?, self.node(2)?))
    }

    /// The gates below the nodes.
    pub(super) fn gates(&self) -> Result<KVec<Arc<Gate>>> {
        let Below::Gated(ours) = &self.plan.below else {
            return Err(EINVAL);
        };
        let mut gates = KVec::new();
        for gate in ours {
            gates.push(gate.clone(), GFP_KERNEL)?;
        }
        Ok(gates)
    }

    /// The gate below a node.
    pub(super) fn gate(&self, id: NodeId) -> Result<Arc<Gate>> {
        Ok(self.gates()?[usize::from(id)].clone())
    }

    /// The keyring of a node.
    pub(super) fn chest(&self, id: NodeId) -> Result<Arc<Chest>> {
        match &self.plan.below {
            Below::Keyed(chests) => chests[usize::from(id)].clone().ok_or(EINVAL),
            _ => Err(EINVAL),
        }
    }

    /// Waits until all that have been started are connected to all nodes.
    #[track_caller]
    pub(super) fn connected(&self) -> Result {
        for node in self.nodes() {
            if let Err(e) = node.wait_up(None, SOON) {
                pr_err!("node {}: not connected\n", node.id());
                return Err(complain("the cluster is not connected", e));
            }
        }
        // What was lost a moment ago is still up.
        for node in self.nodes() {
            eventually(|| node.peers().iter().all(|p| p.snapshot().epoch > 0))?;
        }
        Ok(())
    }
}

/// Node 1 alone, and somebody to play node 0.
pub(super) fn with_client(
    adjust: impl FnOnce(&mut Limits),
) -> Result<(Cluster, Arc<Node>, Identity)> {
    let mut plan = Plan::of(2);
    plan.ip = own_ip;
    adjust(&mut plan.limits);
    let mut cluster = Cluster::idle(plan)?;
    cluster.start(1)?;
    let (node, me) = (cluster.node(1)?, cluster.stranger(0, 7)?);
    Ok((cluster, node, me))
}

/// Which of its connections to a peer a node has, 0 for none.
pub(super) fn epoch(node: &Node, peer: NodeId) -> u64 {
    node.peer(peer).map_or(0, |p| p.snapshot().epoch)
}

/// Waits until a node sees another down.
#[track_caller]
pub(super) fn sees_down(node: &Node, peer: NodeId) -> Result {
    eventually(|| !node.peer(peer).is_some_and(|p| p.is_up()))
}

/// Waits until a node has lost its connection to another.
#[track_caller]
pub(super) fn sees_lost(node: &Node, peer: NodeId) -> Result {
    eventually(|| epoch(node, peer) == 0)
}

// ---- Messages.

/// Sends a message.
#[track_caller]
pub(super) fn send(from: &Node, to: &Node, tag: u32, bytes: &[u8]) -> Result {
    from.send(to.id(), tag, bytes, SOON).here()
}

/// Receives a message of at most 64 bytes from a node, and checks it.
#[track_caller]
pub(super) fn expect(at: &Node, from: &Node, tag: u32, bytes: &[u8]) -> Result {
    let mut buf = [0; 64];
    let info = receive(at, Some(from.id()), Some(tag), &mut buf, SOON).here()?;
    if &buf[..info.len] != bytes {
        return Err(complain("another message", EBADMSG));
    }
    Ok(())
}

/// Receives a message.
pub(super) fn receive(
    at: &Node,
    source: Option<NodeId>,
    tag: Option<u32>,
    buf: &mut [u8],
    timeout: Timeout,
) -> Result<Info> {
    at.recv(source, tag, buf, timeout).map_err(|(e, _)| e)
}

/// Receives the number in a message.
pub(super) fn receive_number(
    at: &Node,
    source: Option<NodeId>,
    tag: Option<u32>,
    timeout: Timeout,
) -> Result<u64> {
    let mut buf = [0; 8];
    let info = receive(at, source, tag, &mut buf, timeout)?;
    if info.len != buf.len() {
        return Err(EBADMSG);
    }
    Ok(u64::from_le_bytes(buf))
}

/// Bytes to be recognised.
pub(super) fn pattern(len: usize, seed: u64) -> Result<KVVec<u8>> {
    let mut bytes = KVVec::from_elem(0, len, GFP_KERNEL)?;
    for (i, chunk) in bytes.chunks_mut(8).enumerate() {
        let number = (seed + i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        chunk.copy_from_slice(&number.to_le_bytes()[..chunk.len()]);
    }
    Ok(bytes)
}

/// Messages that nobody waits for find no memory for as long as this is there, at any node.
pub(super) struct Starvation(());

impl Starvation {
    /// From now on.
    pub(super) fn begin() -> Self {
        STARVED.store(true, Relaxed);
        Self(())
    }
}

impl Drop for Starvation {
    fn drop(&mut self) {
        STARVED.store(false, Relaxed);
    }
}

/// Waits until so many messages and so many receivers wait at a node.
#[track_caller]
pub(super) fn waiting(at: &Node, messages: usize, receivers: usize) -> Result {
    let reached = eventually(|| at.endpoint.waiting() == (messages, receivers));
    if reached.is_err() {
        pr_err!("waiting: {:?}\n", at.endpoint.waiting());
    }
    reached
}

// ---- Calls.

/// Registers a handler that takes any arguments.
#[track_caller]
pub(super) fn register(
    node: &Node,
    func: u32,
    class: Class,
    function: impl Fn(&mut Call<'_>) -> i32 + Send + Sync + 'static,
) -> Result {
    let mut handler = handler(func, class, Owner::NONE, function)?;
    handler.max_args = node.limits().max_rcall as usize;
    node.register(handler).here()
}

/// Registers one that does nothing but wait at a latch.
#[track_caller]
pub(super) fn register_latched(node: &Node, func: u32, class: Class, latch: &Latch) -> Result {
    let barrier = latch.barrier();
    register(node, func, class, move |_| {
        barrier.pass();
        0
    })
}

/// Has the listener of a node held up in a handler that another one has called, until the latch is
/// opened: it reads nothing.
#[track_caller]
pub(super) fn hold_listener(from: &Node, to: &Node, func: u32) -> Result<Latch> {
    let latch = Latch::new()?;
    register_latched(to, func, Class::Short, &latch)?;
    from.rcall(to.id(), func, &[], SOON).here()?;
    latch.wait_held(1)?;
    Ok(latch)
}

/// A handler that takes a few arguments.
pub(super) fn handler(
    func: u32,
    class: Class,
    owner: Owner,
    function: impl Fn(&mut Call<'_>) -> i32 + Send + Sync + 'static,
) -> Result<Handler> {
    Ok(Handler {
        func,
        class,
        name: CString::try_from_fmt(fmt!("test"))?,
        max_args: 64,
        owner,
        function: KBox::new(function, GFP_KERNEL)?,
    })
}

/// A function that every test may register.
pub(super) const ECHO: u32 = 0xec40;

/// Registers a short handler that returns its arguments, and their length as status.
#[track_caller]
pub(super) fn register_echo(node: &Node) -> Result {
    register(node, ECHO, Class::Short, |call| {
        let len = call.args.len();
        if let Some(reply) = call.reply.as_mut().filter(|reply| reply.len() >= len) {
            reply[..len].copy_from_slice(call.args);
        }
        call.reply_len = len;
        len as i32
    })
}

/// Makes a synchronous call without arguments and reply.
pub(super) fn call(from: &Node, to: NodeId, func: u32) -> Result<i32> {
    from.rcall_sync(to, func, &[], &mut [], SOON)
        .map(|success: Success| success.status)
        .map_err(|failure: Failure| failure.error)
}

/// Has another node return eight bytes.
#[track_caller]
pub(super) fn echo(from: &Node, to: &Node) -> Result {
    let args = clock::random().to_le_bytes();
    let mut reply = [0; 8];
    let result = from.rcall_sync(to.id(), ECHO, &args, &mut reply, SOON);
    match result.map_err(|failure| failure.error) {
        Ok(Success { status: 8, len: 8 }) if reply == args => Ok(()),
        Ok(_) => Err(complain("not an echo", EBADMSG)),
        Err(e) => Err(complain("no echo", e)),
    }
}

/// Sends a message each way, and makes a call each way, between every two nodes.
///
/// [`register_echo`] must have been called for each node.
#[track_caller]
pub(super) fn all_talk(cluster: &Cluster) -> Result {
    const TAG: u32 = 0xa11;
    for from in cluster.nodes() {
        for to in cluster.nodes().filter(|to| to.id() != from.id()) {
            send(from, to, TAG, &from.id().to_le_bytes())?;
            echo(from, to)?;
        }
    }
    for at in cluster.nodes() {
        for from in cluster.nodes().filter(|from| from.id() != at.id()) {
            expect(at, from, TAG, &from.id().to_le_bytes())?;
        }
    }
    Ok(())
}
