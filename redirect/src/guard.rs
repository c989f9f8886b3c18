//! Keeps the interception as it should be: applies changes of the pods, notices what others delete or change,
//! and puts it back within a second.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::kernel::{Difference, InstallError, Kernel};
use crate::pods::LocalPods;
use crate::spec::RedirectSpec;

/// How often the guard asks whether anything has changed.
const LOOK: Duration = Duration::from_millis(200);
/// How many looks it is from one question for the pods' interfaces to the next.
const LOOKS_PER_LINKS: u32 = 10;
/// And to the next for what stands behind the ports of bridges.
const LOOKS_PER_OWNERS: u32 = 5;

/// The installer of the interception.
#[derive(Debug)]
pub struct Redirect;

/// The state of the interception, as the guard last saw it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Whether everything is in place.
    pub installed: bool,
    /// How many things others had deleted or changed were put back.
    pub repairs: u64,
    /// Why something could not be applied or looked at; `None` again once it could.
    pub last_error: Option<String>,
    /// Why traffic of pods could pass unseen although everything is in place: a bridge of theirs that the rules
    /// cannot cover. Empty on a node that can be enforced.
    pub unseen: Vec<String>,
    /// The version of the pods that the kernel has, see [`RedirectHandle::set_local_pods`].
    pub applied_version: u64,
}

/// The guard has ended; nothing will be applied any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guard of the interception has ended")]
pub struct GuardEnded;

/// The hold on a running guard. Dropping it ends the guard and leaves the rules in place.
#[derive(Debug)]
pub struct RedirectHandle {
    pods: watch::Sender<(u64, LocalPods)>,
    health: watch::Receiver<Health>,
    guard: JoinHandle<()>,
}

impl Redirect {
    /// Installs routes and rules in the network namespace of the calling thread, over whatever a former
    /// process left, and starts the guard on the current tokio runtime.
    ///
    /// The spec's pods are version 0. Give it the pods the policy cache knows: the table replaces the one of
    /// a former process at once, and with empty sets nobody is protected until the first change.
    pub async fn start(spec: RedirectSpec) -> Result<RedirectHandle, InstallError> {
        let pods = spec.pods.clone();
        let mut kernel = Kernel::install(spec).await?;
        kernel.follow_bridges().await?;
        let unseen = kernel.obstacles().to_vec();
        let (pods, wanted) = watch::channel((0, pods));
        let (report, health) = watch::channel(Health { installed: true, unseen, ..Health::default() });
        let guard = tokio::spawn(Guard { kernel, wanted, report, applied: true, looks: 0 }.run());
        Ok(RedirectHandle { pods, health, guard })
    }
}

impl RedirectHandle {
    /// Asks for these pods; of several requests the last wins. Gives back the request's version, for
    /// [`applied`](Self::applied).
    pub fn set_local_pods(&self, pods: LocalPods) -> u64 {
        let mut version = 0;
        self.pods.send_modify(|wanted| {
            version = wanted.0 + 1;
            *wanted = (version, pods);
        });
        version
    }

    /// The state of the interception, and word of its changes.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// Waits until the kernel has the pods of `version` or of a later one.
    pub async fn applied(&self, version: u64) -> Result<(), GuardEnded> {
        let mut health = self.health.clone();
        let reached = health.wait_for(|health| health.applied_version >= version).await;
        reached.map(drop).map_err(|_| GuardEnded)
    }

    /// Ends the guard. The rules stay: they keep isolated pods closed while no proxy runs.
    pub async fn stop(self) {
        let Self { pods, guard, .. } = self;
        drop(pods);
        if let Err(error) = guard.await {
            tracing::error!(%error, "guard of the interception panicked");
        }
    }
}

struct Guard {
    kernel: Kernel,
    wanted: watch::Receiver<(u64, LocalPods)>,
    report: watch::Sender<Health>,
    /// Whether the last application of pods succeeded.
    applied: bool,
    looks: u32,
}

impl Guard {
    async fn run(mut self) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                changed = self.wanted.changed() => match changed {
                    Ok(()) => self.apply().await,
                    Err(_) => return,
                },
                _ = look.tick() => self.look().await,
                () = self.kernel.links_changed() => self.follow_bridges().await,
            }
        }
    }

    async fn apply(&mut self) {
        let (version, pods) = self.wanted.borrow_and_update().clone();
        let outcome = self.kernel.set_pods(pods).await;
        self.applied = outcome.is_ok();
        match outcome {
            Ok(()) => {
                self.report.send_modify(|health| health.applied_version = version);
                // That the rest is back, only a look at everything can tell.
                if !self.report.borrow().installed {
                    self.look().await;
                }
            }
            Err(error) => self.failed(&error),
        }
    }

    async fn look(&mut self) {
        let mut repaired = Vec::new();
        let outcome = self.repair(&mut repaired).await;
        for difference in &repaired {
            tracing::warn!(what = difference.name(), "interception repaired");
        }
        self.count(repaired.len());
        match outcome {
            Ok(()) => self.settle(),
            Err(error) => self.failed(&error),
        }
    }

    /// At once when a pod's port has come: until the rules know it, other pods of its bridge get none of its
    /// packets.
    async fn follow_bridges(&mut self) {
        match self.kernel.follow_bridges().await {
            // Bridges are a part: that the rest is back, only a look at everything can tell.
            Ok(_) if !self.applied || !self.report.borrow().installed => self.look().await,
            Ok(repaired) => {
                self.count(repaired.len());
                self.settle();
            }
            Err(error) => self.failed(&error),
        }
    }

    /// Puts back what differs, and adds to `repaired` what it was. What somebody does to routing is told last: nothing
    /// else waits for it.
    async fn repair(&mut self, repaired: &mut Vec<Difference>) -> Result<(), InstallError> {
        let routes = self.kernel.repair_routes().await;
        repaired.extend(self.kernel.follow_bridges().await?);
        self.looks = (self.looks + 1) % LOOKS_PER_LINKS;
        if self.looks == 0 {
            self.kernel.follow_pod_links().await?;
        }
        if self.looks.is_multiple_of(LOOKS_PER_OWNERS) {
            self.kernel.follow_owners().await?;
        }
        let mut differences = self.kernel.differences().await?;
        differences.extend(self.kernel.turned_back());
        if !differences.is_empty() {
            self.kernel.replace().await?;
            // What a failed application left undone is no stranger's doing.
            if self.applied {
                repaired.extend(differences);
            }
        }
        repaired.extend(routes?);
        Ok(())
    }

    fn count(&self, repaired: usize) {
        if repaired > 0 {
            self.report.send_modify(|health| {
                health.repairs += u64::try_from(repaired).unwrap_or(u64::MAX);
            });
        }
    }

    fn settle(&mut self) {
        self.applied = true;
        let version = self.wanted.borrow().0;
        // A version that has come meanwhile is applied by the next turn, not by this one.
        let seen = !self.wanted.has_changed().unwrap_or(false);
        let unseen = self.kernel.obstacles().to_vec();
        self.report.send_if_modified(|health| {
            let before = health.clone();
            health.installed = true;
            health.last_error = None;
            health.unseen = unseen;
            if seen {
                health.applied_version = version;
            }
            *health != before
        });
    }

    fn failed(&self, error: &InstallError) {
        let text = crate::kernel::chain(error);
        self.report.send_if_modified(|health| {
            let news = health.installed || health.last_error.as_deref() != Some(text.as_str());
            if news {
                tracing::error!(error = %text, "interception not in place");
            }
            health.installed = false;
            health.last_error = Some(text.clone());
            news
        });
    }
}
