//! A word that is not known → the known one that was likely meant.

/// The known word that differs least, when few letters differ and the word is long enough to tell.
pub(crate) fn meant<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    // Whoever writes a file of their own has long words; they are no misspelling, and comparing them costs time.
    if word.len() > 64 {
        return None;
    }
    let allowed = (word.chars().count() / 3).min(2);
    let distance = |other: &'k str| (distance(word, other), other);
    let nearest = known.into_iter().map(distance).min_by_key(|(distance, _)| *distance);
    nearest.filter(|(distance, _)| (1..=allowed).contains(distance)).map(|(_, other)| other)
}

/// How many letters must be put in, left out, replaced or exchanged with their neighbour. Upper and lower case
/// differ by nothing but a change of case, which counts once.
fn distance(a: &str, b: &str) -> usize {
    if a != b && a.eq_ignore_ascii_case(b) {
        return 1;
    }
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for (i, left) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, right) in b.iter().enumerate() {
            let replaced = rows[i][j] + usize::from(left != right);
            let mut least = replaced.min(row[j] + 1).min(rows[i][j + 1] + 1);
            if i > 0 && j > 0 && a[i - 1] == *right && *left == b[j - 1] {
                least = least.min(rows[i - 1][j - 1] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    #[test]
    fn few_wrong_letters_are_a_misspelling_and_another_word_is_none() {
        let known = ["ingress", "egress", "podSelector", "policyTypes", "to", "port"];
        let table = [
            ("ingres", Some("ingress")),
            ("igress", Some("ingress")),
            ("podselector", Some("podSelector")),
            ("podSelectors", Some("podSelector")),
            ("PODSELECTOR", Some("podSelector")),
            ("policyTpyes", Some("policyTypes")),
            ("ports", Some("port")),
            ("ot", None),
            ("description", None),
            ("ingress", None),
            ("", None),
        ];
        for (word, meant) in table {
            assert_eq!(super::meant(word, known), meant, "{word}");
        }
        assert_eq!(super::meant(&"a".repeat(1 << 20), known), None);
    }
}
