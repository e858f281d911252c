// SPDX-License-Identifier: GPL-2.0

//! The ring: the keys of a node, and all sockets that have them.
//!
//! What a socket is to have is decided in [`super::ao`]; this looks at the sockets and does it: when
//! they are made, when the keys change, and later again until nothing is left to do.

use super::ao;
use super::ao::{
    Ids,
    Key,
    Keys,
    Route,
    Source,
    Stage,
    Trouble,
    Verdict,
    Watch,
    FAULTS, //
};
use super::transport::Guard;
use crate::config::{
    Addr,
    KeyName,
    NodeId, //
};
use crate::sys::clock;
use crate::sys::clock::Millis;
use crate::sys::noio;
use crate::sys::sock;
use crate::sys::sock::{
    Dropped,
    HookedSocket,
    KeyUse, //
};
use core::net::SocketAddr;
use kernel::prelude::*;
use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};
use kernel::sync::{
    new_mutex,
    Arc,
    Mutex, //
};

/// How often sockets are looked at, milliseconds.
const LOOK: Millis = if cfg!(KCCM_KUNIT) { 100 } else { 1000 };

/// How long they are looked at before it is the turn of what else the thread does, milliseconds. To
/// take a key away the kernel waits until no other processor can be using it.
const TURN: Millis = 20;

/// The keys of a node.
#[pin_data]
pub(crate) struct Ring {
    /// Whose they are, for the log.
    node: NodeId,
    name: KeyName,
    source: KBox<dyn Source>,
    /// Held while keys are looked for again.
    #[pin]
    rekeying: Mutex<()>,
    #[pin]
    state: Mutex<State>,
}

struct State {
    keys: Arc<Keys>,
    /// How often they were replaced, from 1.
    version: u64,
    /// Keys that are not in `keys` any more and that a socket may still have.
    former: KVec<Key>,
    sockets: KVec<Arc<Entry>>,
    /// The one that listens.
    port: Option<Arc<Entry>>,
    routes: KVec<(SocketAddr, Route)>,
    watch: Watch,
    next_look: Millis,
}

/// A socket with keys.
#[pin_data]
struct Entry {
    socket: Arc<HookedSocket>,
    /// It has exactly the keys of this version.
    settled: Atomic<u64>,
    #[pin]
    progress: Mutex<Progress>,
}

struct Progress {
    stage: Stage,
    before: Option<KeyUse>,
}

impl Ring {
    /// Looks for the keys of that name. Process context.
    pub(crate) fn new(
        node: NodeId,
        name: KeyName,
        source: KBox<dyn Source>,
    ) -> Result<Arc<Self>, Trouble> {
        if !sock::can_sign() {
            return Err(Trouble::NoTcpAo);
        }
        let keys = Arc::new(Keys::load(&name, &*source)?, GFP_KERNEL)?;
        let state = State {
            keys,
            version: 1,
            former: KVec::new(),
            sockets: KVec::new(),
            port: None,
            routes: KVec::new(),
            watch: Watch::default(),
            next_look: 0,
        };
        Ok(Arc::pin_init(
            pin_init!(Self {
                node,
                name,
                source,
                rekeying <- new_mutex!((), "Ring::rekeying"),
                state <- new_mutex!(state, "Ring::state"),
            }),
            GFP_KERNEL,
        )?)
    }

    // ---- Sockets that come and go.

    /// Gives a socket that is not bound yet the keys, and has it let in nobody without. It is to
    /// listen.
    pub(super) fn guard_port(self: &Arc<Self>, socket: Arc<HookedSocket>) -> Result<Member> {
        let keys = self.state.lock().keys.clone();
        for key in keys.iter() {
            socket.add_key(key.id, &key.secret, false)?;
        }
        socket.require_key()?;
        self.enter(socket, None, Stage::Port)
    }

    /// The same with a socket that is to connect.
    pub(super) fn guard_dial(
        self: &Arc<Self>,
        socket: Arc<HookedSocket>,
        to: &SocketAddr,
    ) -> Result<Member> {
        let (keys, first) = {
            let mut state = self.state.lock();
            let ids = state.keys.ids();
            let first = state.route(to)?.choose(&ids);
            (state.keys.clone(), first)
        };
        for key in keys.iter() {
            socket.add_key(key.id, &key.secret, Some(key.id) == first)?;
        }
        socket.require_key()?;
        self.enter(socket, Some(*to), Stage::Dialing)
    }

    fn guard_accepted(self: &Arc<Self>, socket: Arc<HookedSocket>) -> Result<Member> {
        // The kernel lets in nobody without a key, and that is all that keeps them out.
        if socket.keys().is_err() {
            return Err(ECONNABORTED);
        }
        let member = self.enter(socket, None, Stage::Open)?;
        self.look_after(&member.entry);
        Ok(member)
    }

    fn enter(
        self: &Arc<Self>,
        socket: Arc<HookedSocket>,
        to: Option<SocketAddr>,
        stage: Stage,
    ) -> Result<Member> {
        let progress = Progress {
            stage,
            before: None,
        };
        let entry = Arc::pin_init(
            pin_init!(Entry {
                socket,
                settled: Atomic::new(0),
                progress <- new_mutex!(progress, "Entry::progress"),
            }),
            GFP_KERNEL,
        )?;
        let mut state = self.state.lock();
        state.sockets.push(entry.clone(), GFP_KERNEL)?;
        if stage == Stage::Port {
            state.port = Some(entry.clone());
        }
        drop(state);
        Ok(Member {
            ring: self.clone(),
            entry,
            to,
        })
    }

    fn leave(&self, entry: &Arc<Entry>) {
        let mut state = self.state.lock();
        let index = state.sockets.iter().position(|e| Arc::ptr_eq(e, entry));
        let left = index.and_then(|i| state.sockets.remove(i).ok());
        let port = state.port.take_if(|port| Arc::ptr_eq(port, entry));
        drop(state);
        drop((left, port));
    }

    // ---- Keys that change.

    /// Does what is to be done about the keys of a socket now.
    fn look_after(&self, entry: &Entry) {
        let mut progress = entry.progress.lock();
        let (keys, version) = {
            let state = self.state.lock();
            (state.keys.clone(), state.version)
        };
        let Ok(now) = entry.socket.keys() else {
            return;
        };
        let Progress { stage, before } = &mut *progress;
        let plan = ao::plan(&keys.ids(), *stage, &now, before);
        // What does not work is tried again at the next look.
        for key in keys.iter().filter(|key| plan.add.contains(key.id)) {
            let _ = entry.socket.add_key(key.id, &key.secret, false);
        }
        if let Some(id) = plan.ask {
            let _ = entry.socket.ask_for_key(id);
        }
        for id in plan.forget.iter() {
            let _ = entry.socket.forget_key(id);
        }
        entry
            .settled
            .store(if plan.again { 0 } else { version }, Relaxed);
    }

    /// The sockets that have not got the keys that they are to have. They can be looked after without
    /// the lock.
    fn unsettled(&self) -> Result<KVec<Arc<Entry>>> {
        let state = self.state.lock();
        let mut found = KVec::new();
        for entry in &state.sockets {
            if entry.settled.load(Relaxed) != state.version {
                found.push(entry.clone(), GFP_KERNEL)?;
            }
        }
        Ok(found)
    }

    fn try_rekey(&self) -> Result<Arc<Keys>, Trouble> {
        let _one_at_a_time = self.rekeying.lock();
        let keys = Arc::new(Keys::load(&self.name, &*self.source)?, GFP_KERNEL)?;
        {
            let mut state = self.state.lock();
            keys.may_follow(&state.keys, &state.former)?;
            let old = state.keys.clone();
            state.former.reserve(old.iter().count(), GFP_KERNEL)?;
            for key in old.iter().filter(|key| keys.get(key.id).is_none()) {
                state.former.push(key.clone(), GFP_KERNEL)?;
            }
            state.former.retain(|key| keys.get(key.id).is_none());
            state.keys = keys.clone();
            state.version += 1;
        }
        for entry in &self.unsettled()? {
            self.look_after(entry);
        }
        Ok(keys)
    }

    // ---- What there is to say.

    /// An attempt to connect came to nothing.
    fn failed(&self, to: &SocketAddr, verdict: Option<Verdict>) {
        let mut state = self.state.lock();
        let Ok(route) = state.route(to) else {
            return;
        };
        let before = core::mem::replace(&mut route.verdict, verdict);
        drop(state);
        // That nobody listens yet is nothing to speak of.
        match verdict {
            None | Some(Verdict::NotSigned) => {}
            same if same == before => {}
            Some(verdict) => pr_warn!(
                "node {}: not connected to {}: {}\n",
                self.node,
                Addr(*to),
                verdict.text()
            ),
        }
    }

    /// Reports what the port has not let in.
    fn report(&self, now: Millis) {
        let dropped = self.dropped();
        let news = self.state.lock().watch.news(&dropped, now);
        for ((fault, count), new) in FAULTS.into_iter().zip(dropped.counts()).zip(news) {
            if new {
                pr_warn!(
                    "node {}: refused what was {} (segments so far: {})\n",
                    self.node,
                    fault,
                    count
                );
            }
        }
    }

    /// Does what is to be done from time to time. Returns when to call it again.
    pub(super) fn tend(&self) -> Millis {
        let now = clock::now();
        {
            let mut state = self.state.lock();
            if now < state.next_look {
                return state.next_look;
            }
            state.next_look = now + LOOK;
        }
        self.report(now);
        let Ok(unsettled) = self.unsettled() else {
            return now + LOOK;
        };
        for entry in &unsettled {
            self.look_after(entry);
            if clock::now() >= now + TURN {
                self.state.lock().next_look = now;
                return now;
            }
        }
        if unsettled.is_empty() {
            // Nobody has any other keys.
            let mut state = self.state.lock();
            let version = state.version;
            let settled = |e: &Arc<Entry>| e.settled.load(Relaxed) == version;
            if state.sockets.iter().all(settled) {
                state.former.clear();
            }
        }
        now + LOOK
    }
}

impl Guard for Ring {
    fn rekey(&self) -> Result {
        // Whoever frees memory may wait for one of these sockets.
        let _noio = noio::Scope::enter();
        match self.try_rekey() {
            Ok(keys) => {
                pr_info!(
                    "node {}: key {}: has {}\n",
                    self.node,
                    self.name,
                    keys.ids()
                );
                Ok(())
            }
            Err(trouble) => {
                pr_err!(
                    "node {}: the keys stay as they are: {}\n",
                    self.node,
                    trouble.of(&self.name)
                );
                Err(trouble.error())
            }
        }
    }

    fn name(&self) -> KeyName {
        self.name
    }

    fn numbers(&self) -> Ids {
        self.state.lock().keys.ids()
    }

    fn dropped(&self) -> Dropped {
        let port = self.state.lock().port.clone();
        let look = port.and_then(|port| port.socket.keys().ok());
        look.map_or(Dropped::default(), |look| look.dropped)
    }

    fn remark(&self, to: &SocketAddr) -> Option<&'static str> {
        let state = self.state.lock();
        let (_, route) = state.routes.iter().find(|(at, _)| at == to)?;
        route.verdict.map(|verdict| verdict.text())
    }

    #[cfg(KCCM_KUNIT)]
    fn held(&self) -> Ids {
        let state = self.state.lock();
        let looks = state.sockets.iter().filter_map(|e| e.socket.keys().ok());
        let mut all = Ids::default();
        for look in looks {
            look.keys().iter().for_each(|&(id, _)| all.insert(id));
        }
        all
    }
}

impl State {
    fn route(&mut self, to: &SocketAddr) -> Result<&mut Route> {
        let known = self.routes.iter().position(|(at, _)| at == to);
        let index = match known {
            Some(index) => index,
            None => {
                self.routes.push((*to, Route::default()), GFP_KERNEL)?;
                self.routes.len() - 1
            }
        };
        Ok(&mut self.routes[index].1)
    }
}

/// A socket's place in the ring. The socket leaves it when this is dropped.
pub(super) struct Member {
    ring: Arc<Ring>,
    entry: Arc<Entry>,
    /// Where it is to connect to, if it is.
    to: Option<SocketAddr>,
}

impl Member {
    fn move_to(&self, stage: Stage) -> Stage {
        core::mem::replace(&mut self.entry.progress.lock().stage, stage)
    }

    /// Takes over a socket that has come in on this one, which listens.
    pub(super) fn guard_accepted(&self, socket: Arc<HookedSocket>) -> Result<Member> {
        self.ring.guard_accepted(socket)
    }

    fn note(&self, worked: impl FnOnce(&mut Route)) {
        if let Some(to) = &self.to {
            if let Ok(route) = self.ring.state.lock().route(to) {
                worked(route);
            }
        }
    }

    /// The socket is connected, or was so already.
    pub(super) fn opened(&self) {
        {
            let mut progress = self.entry.progress.lock();
            if progress.stage != Stage::Dialing {
                return;
            }
            progress.stage = Stage::Open;
        }
        self.remember();
        self.ring.look_after(&self.entry);
    }

    /// The socket is about to be shut down, because this node wants it to (`graceful`), or because of
    /// what has become of it.
    pub(super) fn closing(&self, graceful: bool) {
        match self.move_to(Stage::Closed) {
            Stage::Open => self.remember(),
            Stage::Dialing if !graceful => {
                let waits = self.entry.socket.status() == Err(EINPROGRESS);
                let look = self.entry.socket.keys().ok().filter(|_| waits);
                if let Some(to) = &self.to {
                    let verdict = look.map(|look| Verdict::new(&look.dropped));
                    self.ring.failed(to, verdict);
                }
            }
            _ => {}
        }
    }

    /// Takes note of which key is good for this peer.
    fn remember(&self) {
        if let Some(id) = self.key() {
            self.note(|route| route.worked(id));
        }
    }

    /// The key that is signed with.
    pub(super) fn key(&self) -> Option<u8> {
        self.entry.socket.keys().ok()?.sends
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.ring.leave(&self.entry);
    }
}
