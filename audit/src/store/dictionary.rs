//! What a file keeps once and rows have numbers of.
//!
//! What is remembered here is bounded; what is forgotten is kept a second time when it comes again, under another
//! number. Numbers given within a transaction that did not come about are taken back.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use flow::Endpoint;
use rusqlite::{Connection, params};

use crate::parts;

/// Of each kind.
const REMEMBERED: usize = 16_384;

/// Actions, causes, protocols and directions: few, and each its place's number.
#[derive(Debug, Default)]
pub(super) struct Words(Vec<&'static str>);

impl Words {
    pub(super) fn id(&mut self, word: &'static str, file: &Connection) -> rusqlite::Result<i64> {
        let place = self.0.iter().position(|known| *known == word).unwrap_or(self.0.len());
        let id = i64::try_from(place).unwrap_or(i64::MAX);
        if place == self.0.len() {
            file.prepare("INSERT INTO words VALUES (?1, ?2)")?.execute(params![id, word])?;
            self.0.push(word);
        }
        Ok(id)
    }
}

/// Pieces of JSON.
#[derive(Debug, Default)]
pub(super) struct Parts {
    ids: HashMap<Box<[u8]>, i64>,
    count: i64,
    /// The piece that is looked for.
    pub(super) piece: Vec<u8>,
}

impl Parts {
    /// The number of what stands in `piece`, which is empty then.
    pub(super) fn id(&mut self, file: &Connection) -> rusqlite::Result<i64> {
        let id = match self.ids.get(&*self.piece) {
            Some(id) => *id,
            None => {
                if self.ids.len() >= REMEMBERED {
                    self.ids.clear();
                }
                self.count += 1;
                let text = String::from_utf8_lossy(&self.piece);
                file.prepare("INSERT INTO parts VALUES (?1, ?2)")?.execute(params![self.count, text])?;
                self.ids.insert(self.piece.as_slice().into(), self.count);
                self.count
            }
        };
        self.piece.clear();
        Ok(id)
    }
}

/// Who stands at an end, with the address. Nobody known is 0.
#[derive(Debug, Default)]
pub(super) struct Ends {
    /// By where it is in memory, where it stays while it is held here.
    held: HashMap<(usize, IpAddr), (Endpoint, u32)>,
    ids: HashMap<(IpAddr, Box<[u8]>), u32>,
    count: u32,
    k8s: Vec<u8>,
}

impl Ends {
    pub(super) fn id(&mut self, end: &Endpoint, ip: IpAddr, file: &Connection) -> rusqlite::Result<u32> {
        let place = match end {
            Endpoint::Pod(pod) => Arc::as_ptr(pod).addr(),
            Endpoint::Node { name, .. } => name.as_ptr().addr(),
            Endpoint::UnknownLocal | Endpoint::External => return Ok(0),
        };
        if let Some((_, id)) = self.held.get(&(place, ip)) {
            return Ok(*id);
        }
        if self.held.len() >= REMEMBERED {
            self.held.clear();
        }
        let id = self.id_of_new(end, ip, file)?;
        self.held.insert((place, ip), (end.clone(), id));
        Ok(id)
    }

    fn id_of_new(&mut self, end: &Endpoint, ip: IpAddr, file: &Connection) -> rusqlite::Result<u32> {
        self.k8s.clear();
        parts::k8s(&mut self.k8s, end);
        let key = (ip, self.k8s.as_slice().into());
        if let Some(id) = self.ids.get(&key) {
            return Ok(*id);
        }
        if self.ids.len() >= REMEMBERED {
            self.ids.clear();
        }
        self.count += 1;
        let pod = end.pod();
        file.prepare("INSERT INTO ends VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(params![
            self.count,
            ip.to_string(),
            pod.map(|pod| &*pod.namespace),
            pod.map(|pod| &*pod.name),
            String::from_utf8_lossy(&self.k8s),
        ])?;
        self.ids.insert(key, self.count);
        Ok(self.count)
    }
}

/// Numbers given so far, to which a failed transaction goes back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given {
    words: usize,
    parts: i64,
    ends: u32,
}

impl Given {
    pub(super) fn of(words: &Words, parts: &Parts, ends: &Ends) -> Self {
        Self { words: words.0.len(), parts: parts.count, ends: ends.count }
    }

    pub(super) fn restore(self, words: &mut Words, parts: &mut Parts, ends: &mut Ends) {
        words.0.truncate(self.words);
        parts.ids.retain(|_, id| *id <= self.parts);
        (parts.count, parts.piece) = (self.parts, Vec::new());
        ends.held.retain(|_, (_, id)| *id <= self.ends);
        ends.ids.retain(|_, id| *id <= self.ends);
        ends.count = self.ends;
    }
}
