// SPDX-License-Identifier: GPL-2.0

//! Connections that have ended here, and whose last words are still under way.
//!
//! TCP resets a connection whose socket is released before all that came in has been read, or for which
//! something comes in after it was shut down for receiving, and throws away what it has yet to send
//! (RFC 1122, 4.2.2.13; `tcp_rcv_state_process()` and `__tcp_close()` in net/ipv4). A peer that floods
//! this node would never hear its good-bye then. So sockets that end gracefully are shut down for
//! sending only, and kept until the peer's TCP has acknowledged everything, or for a bounded time; what
//! is left then is reset, see `kccm_sock_release()`.

use crate::sys::clock;
use crate::sys::clock::Millis;
use crate::sys::sock::HookedSocket;
use kernel::prelude::*;
use kernel::sync::{
    new_mutex,
    Arc,
    Mutex, //
};
use kernel::time::delay::fsleep;
use kernel::time::Delta;

/// How long a socket is kept whose peer acknowledges nothing more: enough for TCP to send once or twice
/// again what was lost.
const SILENCE: Millis = 1000;

/// How long in all.
const LONGEST: Millis = 3000;

/// How often they are looked at, milliseconds.
const LOOK: Millis = 10;

/// How many are kept, more than there can be connections to peers: whoever makes this node refuse him
/// again and again takes no more memory.
const MOST: usize = 1024;

struct Lingerer {
    socket: Arc<HookedSocket>,
    /// What the peer had acknowledged, and when that was news.
    acknowledged: u32,
    heard: Millis,
    until: Millis,
}

impl Lingerer {
    /// Whether it is to be kept.
    fn is_wanted(&mut self, now: Millis) -> bool {
        let acknowledged = self.socket.acknowledged();
        if self.acknowledged != acknowledged {
            self.acknowledged = acknowledged;
            self.heard = now;
        }
        now < self.until.min(self.heard + SILENCE) && !self.socket.is_settled()
    }
}

/// The sockets that are kept.
#[pin_data]
pub(super) struct Lingering {
    #[pin]
    sockets: Mutex<KVVec<Lingerer>>,
}

impl Lingering {
    /// None yet.
    pub(super) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self { sockets <- new_mutex!(KVVec::new(), "Lingering::sockets") }),
            GFP_KERNEL,
        )
    }

    /// Shuts a socket down, whose hook has been removed, and keeps it for as long as it takes. Process
    /// context.
    pub(super) fn close(&self, socket: &Arc<HookedSocket>) {
        let now = clock::now();
        let entry = Lingerer {
            socket: socket.clone(),
            acknowledged: socket.acknowledged(),
            heard: now,
            until: now + LONGEST,
        };
        let mut sockets = self.sockets.lock();
        if sockets.len() >= MOST {
            sweep(&mut sockets);
        }
        if sockets.len() >= MOST {
            // The one that has had the most time.
            drop(sockets.remove(0));
        }
        if sockets.push(entry, GFP_KERNEL).is_ok() {
            socket.shutdown_sending();
        } else {
            socket.shutdown();
        }
    }

    /// Lets go of those that need not be kept any longer. Returns when to look again. Process context.
    pub(super) fn tend(&self) -> Millis {
        let mut sockets = self.sockets.lock();
        sweep(&mut sockets);
        if sockets.is_empty() {
            Millis::MAX
        } else {
            clock::now() + LOOK
        }
    }

    /// Waits until none is kept. Process context.
    pub(super) fn settle(&self) {
        while self.tend() != Millis::MAX {
            fsleep(Delta::from_millis(1));
        }
    }
}

/// Lets go of those whose peer has everything, or has had the time.
fn sweep(sockets: &mut KVVec<Lingerer>) {
    let now = clock::now();
    sockets.retain(|entry| entry.is_wanted(now));
}
