//! The pages: links that lead somewhere, commands and files that exist, and messages that the program really says.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use deploy_tests::{render, tools};

fn pages() -> Vec<PathBuf> {
    let deploy = tools::repository().join("deploy");
    let mut pages = vec![deploy.join("README.md")];
    for folder in ["docs", "docs/cni"] {
        let entries = fs::read_dir(deploy.join(folder)).unwrap().map(|entry| entry.unwrap().path());
        pages.extend(entries.filter(|path| path.extension().is_some_and(|ending| ending == "md")));
    }
    assert!(pages.len() >= 10, "{pages:?}");
    pages
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn every_link_leads_to_a_file() {
    for page in pages() {
        let text = read(&page);
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = page.parent().unwrap().join(target.split('#').next().unwrap());
            assert!(target.contains("://") || file.exists(), "{}: {target}", page.display());
        }
    }
}

#[test]
fn every_file_of_the_repository_that_a_page_names_exists() {
    let mut found = 0;
    for page in pages() {
        for word in read(&page).split(|c: char| c.is_whitespace() || "`()'\"".contains(c)) {
            if let Some(path) =
                word.strip_prefix("../sluice/").or(word.starts_with("deploy/").then_some(word))
            {
                let path = path.trim_end_matches([',', '.', ':', ';']);
                assert!(tools::repository().join(path).exists(), "{}: {path}", page.display());
                found += 1;
            }
        }
    }
    assert!(found >= 10, "{found}");
}

#[test]
fn the_kustomizations_that_pages_show_render_with_the_image_and_the_configuration_that_they_give() {
    let config = "redirect: {mark_mask: 0x7e00}\n";
    for (page, pods) in [("install.md", "sluice"), ("uninstall.md", "sluice-cleanup")] {
        let text = read(&tools::repository().join("deploy/docs").join(page));
        let shown = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
        let shown: Vec<&str> = shown.filter(|block| block.contains("kind: Kustomization")).collect();
        assert_eq!(shown.len(), 1, "{page}");
        // A name as a registry has it.
        let objects = render::kustomize_text(&shown[0].replace("REGISTRY", "r.example:5000"), config);
        assert_eq!(render::object(&objects, "DaemonSet")["metadata"]["name"], pods, "{page}");
        let pod = render::pod(&objects);
        let containers = ["initContainers", "containers"].map(|key| pod[key].as_array().cloned());
        for container in containers.into_iter().flatten().flatten() {
            assert_eq!(container["image"], "r.example:5000/sluice:0.1.0", "{page}");
        }
        assert_eq!(render::config(&objects), config, "{page}");
    }
}

/// The sources of the program, without tests, in one.
fn sources() -> String {
    let repository = tools::repository();
    let crates =
        ["sluice", "redirect", "proxy", "policy-cache", "audit"].map(|name| format!("{name}/src/*.rs"));
    let listed = Command::new("git").arg("ls-files").args(crates).current_dir(&repository).output().unwrap();
    let files = String::from_utf8(listed.stdout).unwrap();
    let text: String = files
        .lines()
        .filter(|file| !file.ends_with("_tests.rs"))
        .map(|file| fs::read_to_string(repository.join(file)).unwrap_or_default())
        .collect();
    // A message that goes on in the next line of the source.
    let mut joined = String::with_capacity(text.len());
    for (index, part) in text.split("\\\n").enumerate() {
        joined.push_str(if index == 0 { part } else { part.trim_start() });
    }
    joined
}

#[test]
fn every_message_that_the_troubleshooting_quotes_is_one_the_program_says() {
    let page = read(&tools::repository().join("deploy/docs/troubleshooting.md"));
    let sources = sources();
    // From the parser of YAML, and a place instead of a message.
    let elsewhere = ["unknown field ", "FILE:LINE:COLUMN: unknown field "];
    let mut found = 0;
    for section in ["## The agent does not start", "## `sluice status` cannot ask", "## After an uninstall"] {
        let (_, rest) = page.split_once(&format!("{section}\n")).expect(section);
        for row in
            rest.lines().take_while(|line| !line.starts_with("## ")).filter(|line| line.starts_with("| "))
        {
            let said = row.split(" | ").next().unwrap();
            for quote in said.split('`').skip(1).step_by(2) {
                for part in quote.split('…').filter(|part| part.trim().len() > 3 && !elsewhere.contains(part))
                {
                    let part = part.replace("5s", "{LIMIT:?}").replace("NFQUEUE 1093", "NFQUEUE ");
                    let skip = part.starts_with("--") || part.starts_with('/');
                    assert!(skip || sources.contains(part.trim()), "{section}: {part}");
                    found += 1;
                }
            }
        }
    }
    assert!(found >= 12, "{found}");
}

#[test]
fn every_condition_of_readiness_is_in_the_troubleshooting() {
    let page = read(&tools::repository().join("deploy/docs/troubleshooting.md"));
    let agent = read(&tools::repository().join("sluice/src/agent.rs"));
    let (_, list) = agent.split_once("Conditions::new(&[").unwrap();
    let names: Vec<&str> = list.split(']').next().unwrap().split('"').skip(1).step_by(2).collect();
    assert!(names.len() >= 4, "{names:?}");
    for name in names {
        assert!(page.contains(&format!("| `{name}` |")), "{name}");
    }
}

#[test]
fn every_network_s_page_says_first_what_was_tested_and_which_overlay_to_take() {
    let deploy = tools::repository().join("deploy");
    for name in ["aws-vpc-cni", "calico", "flannel", "k3s", "kindnet"] {
        let page = read(&deploy.join(format!("docs/cni/{name}.md")));
        assert!(page.lines().nth(2).unwrap().starts_with("**State: "), "{name}");
        let (_, rest) = page.split_once("overlay `").expect(name);
        let overlay = rest.split('`').next().unwrap();
        assert!(deploy.join("kustomize/overlays").join(overlay).exists(), "{name}: {overlay}");
    }
    for entry in fs::read_dir(deploy.join("kustomize/overlays")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(read(&deploy.join("docs/install.md")).contains(&name), "{name}");
    }
}
