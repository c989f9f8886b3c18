//! One named network namespace: created, entered by threads, removed on drop.
//!
//! Names of our own making are `slu-PID-N-ROLE`. The pid is the creator's: a later process removes the
//! namespaces, and ends the processes inside, of creators that are gone. No other name is ever swept.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::panic;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::LabError;
use crate::iproute::{ip_batch, nft_script};
use crate::programs;

const RUN_NETNS: &str = "/run/netns";
const SCHEME: &str = "slu-";

/// A network namespace under `/run/netns`, removed on drop.
#[derive(Debug)]
pub struct Netns {
    name: String,
    handle: File,
    removed_on_drop: AtomicBool,
}

impl Netns {
    /// Makes a namespace with a unique name that ends in `role`.
    pub fn create(role: &str) -> Result<Self, LabError> {
        let name = unique_name(role);
        let mut made = Self::create_named(vec![name.clone()])?;
        made.pop().ok_or(LabError::Unknown { kind: "namespace", name })
    }

    /// Makes namespaces with exactly these names, in one go. On an error none of them is left.
    pub(crate) fn create_named(names: Vec<String>) -> Result<Vec<Self>, LabError> {
        sweep_once();
        if let Some(taken) = names.iter().find(|name| path_of(name).exists()) {
            let cause = io::Error::from(io::ErrorKind::AlreadyExists);
            return Err(LabError::Namespace { name: taken.clone(), cause });
        }
        let script: String = names.iter().map(|name| format!("netns add {name}\n")).collect();
        let opened: Result<Vec<Self>, LabError> =
            ip_batch(None, &script).and_then(|()| names.iter().map(|name| Self::open(name)).collect());
        match &opened {
            Ok(namespaces) => {
                for namespace in namespaces {
                    namespace.removed_on_drop.store(true, Ordering::Relaxed);
                }
            }
            Err(_) => {
                let undo: String = names.iter().map(|name| format!("netns delete {name}\n")).collect();
                let _ = force_batch(&undo);
            }
        }
        opened
    }

    /// Opens a namespace that exists. It is not removed on drop.
    pub fn open(name: &str) -> Result<Self, LabError> {
        let handle = File::open(path_of(name))
            .map_err(|cause| LabError::Namespace { name: name.to_owned(), cause })?;
        Ok(Self { name: name.to_owned(), handle, removed_on_drop: AtomicBool::new(false) })
    }

    /// The name under `/run/netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Leaves the namespace in place when this value is dropped.
    pub fn keep(&self) {
        self.removed_on_drop.store(false, Ordering::Relaxed);
    }

    /// Runs `body` on a thread of its own inside the namespace. Sockets opened there stay in it, and
    /// processes spawned there inherit it. A panic of `body` is passed on.
    ///
    /// # Panics
    /// When the namespace cannot be entered, which only a loss of privilege explains.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let result = thread::scope(|scope| {
            scope
                .spawn(|| {
                    if let Err(error) = setns(&self.handle, CloneFlags::CLONE_NEWNET) {
                        panic!("enter network namespace {}: {error}", self.name);
                    }
                    body()
                })
                .join()
        });
        result.unwrap_or_else(|payload| panic::resume_unwind(payload))
    }

    /// A command that will run inside. `ip netns exec` replaces itself by the program, so the child's pid is
    /// the program's. It gets a process group of its own: a terminal's Ctrl-C reaches only the caller.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        use std::os::unix::process::CommandExt;
        // Nobody has a namespace who had no `ip`.
        let mut command = Command::new(programs::find("ip").unwrap_or_else(|_| "ip".into()));
        command.args(["netns", "exec", &self.name]).arg(program).process_group(0);
        command
    }

    /// Runs lines of `ip` commands inside.
    pub fn ip(&self, script: &str) -> Result<(), LabError> {
        ip_batch(Some(&self.name), script)
    }

    /// Loads an nftables script inside, as one transaction.
    pub fn nft(&self, script: &str) -> Result<(), LabError> {
        nft_script(&self.name, script)
    }

    /// Sets kernel switches inside, keys written with dots as in sysctl(8). Dots inside an interface name
    /// are written as slashes.
    pub fn sysctls(&self, settings: &[(String, String)]) -> Result<(), LabError> {
        self.run(|| {
            settings.iter().try_for_each(|(key, value)| {
                // A thread reads /proc/sys/net of its own namespace (net/sysctl_net.c, net_ctl_header_lookup).
                fs::write(sysctl_path(key), value).map_err(|cause| LabError::Sysctl {
                    name: self.name.clone(),
                    key: key.clone(),
                    value: value.clone(),
                    cause,
                })
            })
        })
    }

    /// Sets one kernel switch inside.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<(), LabError> {
        self.sysctls(&[(key.to_owned(), value.to_owned())])
    }

    /// Reads one kernel switch inside.
    pub fn sysctl_value(&self, key: &str) -> io::Result<String> {
        self.run(|| fs::read_to_string(sysctl_path(key)).map(|text| text.trim().to_owned()))
    }

    /// True when the kernel has given each of these interfaces its link-local IPv6 address, which it does as
    /// soon as they can send (net/ipv6/addrconf.c, addrconf_link_ready).
    pub(crate) fn links_are_ready(&self, interfaces: &[String]) -> bool {
        // Not /proc/self/net: that is the namespace of the process's first thread.
        let table = self.run(|| fs::read_to_string("/proc/thread-self/net/if_inet6")).unwrap_or_default();
        let ready: Vec<&str> = table.lines().filter_map(automatic_link_local).collect();
        interfaces.iter().all(|interface| ready.contains(&interface.as_str()))
    }

    /// The pids of the processes inside.
    pub fn pids(&self) -> Vec<i32> {
        self.handle.metadata().map(|meta| pids_inside(meta.ino())).unwrap_or_default()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if self.removed_on_drop.load(Ordering::Relaxed) {
            // Nothing to tell a caller that is going away; the next creation sweeps what is left.
            let _ = ip_batch(None, &format!("netns delete {}\n", self.name));
        }
    }
}

/// Drops many namespaces with one process instead of one each.
pub(crate) fn drop_all(namespaces: &[&Netns]) {
    let script: String = namespaces
        .iter()
        .filter(|namespace| namespace.removed_on_drop.swap(false, Ordering::Relaxed))
        .map(|namespace| format!("netns delete {}\n", namespace.name))
        .collect();
    let _ = force_batch(&script);
}

/// Kills every process inside the namespaces whose names `matches`, then removes these. Returns their names.
pub fn remove_namespaces(matches: impl Fn(&str) -> bool) -> Result<Vec<String>, LabError> {
    let entries = match fs::read_dir(RUN_NETNS) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(cause) => return Err(LabError::File { path: RUN_NETNS.into(), cause }),
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| matches(name))
        .collect();
    names.sort();
    for name in &names {
        if let Ok(meta) = fs::metadata(path_of(name)) {
            for pid in pids_inside(meta.ino()) {
                // One that ended meanwhile is as good as killed.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
    let script: String = names.iter().map(|name| format!("netns delete {name}\n")).collect();
    force_batch(&script)?;
    Ok(names)
}

/// A name nobody else has: this process's pid and a count.
pub(crate) fn unique_name(role: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{SCHEME}{}-{count}-{role}", std::process::id())
}

/// True when `name` is of our scheme and the process that made it is gone.
pub(crate) fn is_stale(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(SCHEME) else { return false };
    let Some((pid, rest)) = rest.split_once('-') else { return false };
    let count = rest.split('-').next().unwrap_or_default();
    match (pid.parse::<u32>(), count.parse::<u32>()) {
        (Ok(pid), Ok(_)) => !Path::new(&format!("/proc/{pid}")).exists(),
        _ => false,
    }
}

fn sweep_once() {
    static SWEPT: Once = Once::new();
    // Two processes may sweep the same leftovers at once: the second one finds them gone.
    SWEPT.call_once(|| {
        let _ = remove_namespaces(is_stale);
        crate::cluster::sweep_folders();
    });
}

/// Like [`ip_batch`], going on after a failing line: some of it may be gone already.
fn force_batch(script: &str) -> Result<(), LabError> {
    if script.is_empty() {
        return Ok(());
    }
    match ip_batch(None, script) {
        Ok(()) => Ok(()),
        Err(error) => {
            let mut left = None;
            for line in script.lines() {
                let gone = line.rsplit(' ').next().is_none_or(|name| !path_of(name).exists());
                if !gone && ip_batch(None, &format!("{line}\n")).is_err() {
                    left = Some(());
                }
            }
            left.map_or(Ok(()), |()| Err(error))
        }
    }
}

/// The interface of a line of /proc/net/if_inet6 that tells of a usable link-local address made by the kernel
/// out of a hardware address, so with ff:fe in the middle (RFC 4291, appendix A).
fn automatic_link_local(line: &str) -> Option<&str> {
    const TENTATIVE: u32 = 0x40;
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [address, _index, _prefix, _scope, flags, interface] = fields.try_into().ok()?;
    let automatic = address.starts_with("fe80") && address.get(22..26) == Some("fffe");
    let usable = u32::from_str_radix(flags, 16).ok()? & TENTATIVE == 0;
    (automatic && usable).then_some(interface)
}

fn pids_inside(inode: u64) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|meta| meta.ino() == inode))
        .collect()
}

fn path_of(name: &str) -> PathBuf {
    Path::new(RUN_NETNS).join(name)
}

fn sysctl_path(key: &str) -> PathBuf {
    // sysctl(8): a slash in the dotted form stands for a dot.
    let path: String = key
        .chars()
        .map(|c| match c {
            '.' => '/',
            '/' => '.',
            c => c,
        })
        .collect();
    Path::new("/proc/sys").join(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_our_scheme_whose_creator_is_gone_are_stale() {
        let own = std::process::id();
        // 0x7fffffff is above the kernel's largest pid (include/linux/threads.h, PID_MAX_LIMIT).
        assert!(is_stale("slu-2147483647-4-web"));
        assert!(!is_stale(&format!("slu-{own}-4-web")));
        for foreign in
            ["slu", "slu-", "slu-web", "slu-2147483647", "slu-2147483647-web", "cni-1234", "slux-1-1-a"]
        {
            assert!(!is_stale(foreign), "{foreign}");
        }
    }

    #[test]
    fn a_namespace_is_gone_after_drop_and_a_kept_one_is_not() {
        let first = Netns::create("a").unwrap();
        let second = Netns::create("b").unwrap();
        assert_ne!(first.name(), second.name());
        let (gone, kept) = (first.name().to_owned(), second.name().to_owned());
        second.keep();
        drop((first, second));
        assert!(!path_of(&gone).exists());
        assert!(path_of(&kept).exists());
        assert_eq!(remove_namespaces(|name| name == kept).unwrap(), std::slice::from_ref(&kept));
        assert!(!path_of(&kept).exists());
    }

    #[test]
    fn removing_a_namespace_ends_the_processes_inside_and_no_others() {
        let namespace = Netns::create("busy").unwrap();
        let mut inside = namespace.command("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(inside.id()).unwrap();
        assert!(crate::wait_until(std::time::Duration::from_secs(5), || namespace.pids().contains(&pid)));
        let mut outside = Command::new("sleep").arg("60").spawn().unwrap();
        remove_namespaces(|name| name == namespace.name()).unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&inside.wait().unwrap()), Some(9));
        assert!(outside.try_wait().unwrap().is_none());
        outside.kill().unwrap();
        outside.wait().unwrap();
    }

    #[test]
    fn kernel_switches_are_set_inside_and_not_outside() {
        let namespace = Netns::create("sysctl").unwrap();
        let outside = fs::read_to_string("/proc/sys/net/ipv4/ip_default_ttl").unwrap();
        namespace.sysctl("net.ipv4.ip_default_ttl", "77").unwrap();
        assert_eq!(namespace.sysctl_value("net.ipv4.ip_default_ttl").unwrap(), "77");
        assert_eq!(fs::read_to_string("/proc/sys/net/ipv4/ip_default_ttl").unwrap(), outside);
    }

    #[test]
    fn only_a_usable_address_that_the_kernel_made_shows_a_link_to_be_ready() {
        let line = |address: &str, flags: &str| format!("{address} 02 40 20 {flags}     eth0");
        let made = "fe8000000000000094a401fffe651c52";
        assert_eq!(automatic_link_local(&line(made, "80")), Some("eth0"));
        assert_eq!(automatic_link_local(&line(made, "c0")), None);
        assert_eq!(automatic_link_local(&line("fe800000000000000000000000000001", "82")), None);
        assert_eq!(automatic_link_local(&line("fd001000024400010000000000000002", "82")), None);
        assert_eq!(automatic_link_local("garbage"), None);
    }

    #[test]
    fn a_name_that_is_taken_is_an_error_and_stays() {
        let taken = Netns::create("taken").unwrap();
        let fresh = unique_name("fresh");
        let error = Netns::create_named(vec![fresh.clone(), taken.name().to_owned()]).unwrap_err();
        assert!(matches!(&error, LabError::Namespace { name, .. } if name == taken.name()), "{error}");
        assert!(path_of(taken.name()).exists());
        assert!(!path_of(&fresh).exists());
    }
}
