//! Kubeconfigs that cannot be used, and what is said of them.

use std::fs;

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use tempfile::TempDir;

use super::*;

/// A certificate and its key, in PEM, the certificate good until a year.
fn identity(year: i32) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(year, 1, 2);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn encoded(text: &str) -> String {
    STANDARD.encode(text)
}

/// A file with this cluster and user, as flow mappings, in the context that is current.
fn text(cluster: &str, user: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: here\n\
         contexts: [{{name: here, context: {{cluster: prod, user: me}}}}]\n\
         clusters: [{{name: prod, cluster: {{{cluster}}}}}]\nusers: [{{name: me, user: {{{user}}}}}]\n"
    )
}

const GOOD: &str = "server: 'https://10.0.0.1:6443'";

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn put(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// What is said of a kubeconfig of this content, which is one line that names the file.
    fn refusal(&self, content: &str) -> String {
        let path = self.put("kubeconfig", content);
        let message = load(&path).expect_err(content).to_string();
        let start = format!("kubeconfig {}: ", path.display());
        assert!(!message.contains('\n'), "{message}");
        message.strip_prefix(&start).unwrap_or_else(|| panic!("{message}")).to_owned()
    }
}

#[test]
fn what_a_kubeconfig_lacks_or_misnames_is_told_with_its_field_and_value() {
    let files = Files::new();
    let good = text(GOOD, "token: t");
    for (content, expected) in [
        (String::new(), "the file is empty"),
        (" \n\n".to_owned(), "the file is empty"),
        ("apiVersion: [".to_owned(), "the file cannot be read: "),
        ("just words".to_owned(), "the file cannot be read: "),
        (good.replace("kind: Config", "kind: Pod"), "kind is \"Pod\": the file is no kubeconfig"),
        (
            good.replace("current-context: here", "current-context: ''"),
            "current-context is missing; the file has \"here\"",
        ),
        (good.replace("current-context: here\n", ""), "current-context is missing; the file has \"here\""),
        (
            good.replace("current-context: here", "current-context: there"),
            "current-context is \"there\", and there is no such context; the file has \"here\"",
        ),
        (good.replace("cluster: prod, ", ""), "the file cannot be read: "),
        (
            good.replace("cluster: prod,", "cluster: test,"),
            "contexts[here].context.cluster is \"test\", and there is no such cluster; the file has \"prod\"",
        ),
        (
            good.replace("user: me}", "user: bob}"),
            "contexts[here].context.user is \"bob\", and there is no such user; the file has \"me\"",
        ),
        (
            good.replace("users: [{name: me", "other: [{name: me"),
            "contexts[here].context.user is \"me\", and there is no such user",
        ),
        (good.replace("users: [", "users: [{name: me, user: {}}, "), "users[me] stands twice in the file"),
        (text("", "token: t"), "clusters[prod].cluster.server is missing"),
    ] {
        let message = files.refusal(&content);
        assert!(message.starts_with(expected), "{content}\n{message}");
    }
}

#[test]
fn a_server_without_scheme_host_or_port_is_told_and_never_reaches_the_client() {
    let files = Files::new();
    for (server, problem) in [
        ("10.0.0.1:6443", "it has no scheme"),
        ("api.example.org", "it has no scheme"),
        ("/var/run/api", "it has no scheme"),
        ("//10.0.0.1", "it has no scheme"),
        ("ftp://10.0.0.1", "the scheme \"ftp\" is none of an API server"),
        ("https://", ""),
        ("https://10.0.0.1:", ""),
        ("https://10.0.0.1:99999", ""),
        ("https://10.0.0.1:0", ""),
        ("https://[::1]:x", ""),
        ("https://a b", ""),
        ("https://10.0.0.1/?x=1", "it has a query"),
    ] {
        let message = files.refusal(&text(&format!("server: '{server}'"), "token: t"));
        let start = format!("clusters[prod].cluster.server is {server:?}: {problem}");
        assert!(message.starts_with(&start), "{message}");
        assert!(message.ends_with("it must be like https://10.0.0.1:6443"), "{message}");
    }
    for server in [
        "https://10.0.0.1:6443",
        "https://[fd00::1]:443",
        "https://api",
        "http://127.0.0.1:8001",
        "https://r.example/k8s/c",
    ] {
        let path = files.put("kubeconfig", &text(&format!("server: '{server}'"), "token: t"));
        load(&path).expect(server);
    }
}

#[test]
fn authorities_that_are_none_are_told() {
    let files = Files::new();
    let (certificate, key) = identity(2100);
    let none = files.put("none", "no certificate");
    let missing = files.0.path().join("missing");
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (fields, expected) in [
        ("certificate-authority-data: '!!'".to_owned(), "certificate-authority-data is no base64 ("),
        (
            format!("certificate-authority-data: {}", encoded("x")),
            "certificate-authority-data has no certificate in PEM",
        ),
        (
            format!("certificate-authority-data: {}", encoded(&key)),
            "certificate-authority-data has no certificate in PEM",
        ),
        (
            format!("certificate-authority-data: {}", encoded(broken)),
            "certificate-authority-data has a certificate that cannot be read: ",
        ),
        (
            format!("certificate-authority: '{}'", none.display()),
            &format!("certificate-authority is {}: has no certificate in PEM", none.display()),
        ),
        (
            format!("certificate-authority: '{}'", missing.display()),
            &format!("certificate-authority is {}: No such file", missing.display()),
        ),
        (
            "proxy-url: 'http://proxy:3128'".to_owned(),
            "proxy-url is \"http://proxy:3128\": there is no support",
        ),
    ] {
        let message = files.refusal(&text(&format!("{GOOD}, {fields}"), "token: t"));
        assert!(message.starts_with(&format!("clusters[prod].cluster.{expected}")), "{message}");
    }
    let good =
        format!("{GOOD}, certificate-authority-data: {}, certificate-authority: ''", encoded(&certificate));
    load(&files.put("kubeconfig", &text(&good, "token: t"))).unwrap();
}

#[test]
fn credentials_that_cannot_be_used_are_told_and_secrets_are_not() {
    let files = Files::new();
    let (certificate, key) = identity(2100);
    let (expired, its_key) = identity(2020);
    let (certificate, key, expired, its_key) =
        (encoded(&certificate), encoded(&key), encoded(&expired), encoded(&its_key));
    let empty = files.put("empty", "\n");
    let at = |file: &Path| file.display().to_string();
    let folder = at(files.0.path());
    let missing = at(&files.0.path().join("missing"));
    for (user, expected) in [
        ("token: 'hush hush'".to_owned(), "token is no token".to_owned()),
        ("token: \"hush\\n\"".to_owned(), "token is no token".to_owned()),
        (format!("tokenFile: '{missing}'"), format!("tokenFile is {missing}: No such file")),
        (
            format!("tokenFile: '{folder}'"),
            format!("tokenFile is {folder}: must be a regular file, is a folder"),
        ),
        (
            format!("tokenFile: '{}'", at(&empty)),
            format!("tokenFile is {}: is no token: it is empty", at(&empty)),
        ),
        (
            "exec: {command: aws, apiVersion: client.authentication.k8s.io/v1}".to_owned(),
            "exec is not used by".to_owned(),
        ),
        ("auth-provider: {name: oidc}".to_owned(), "auth-provider is not used by".to_owned()),
        (format!("client-certificate-data: {certificate}"), "client-key is missing".to_owned()),
        (format!("client-key-data: {key}"), "client-certificate is missing".to_owned()),
        (
            format!("client-certificate-data: {certificate}, client-key-data: '?hush'"),
            "client-key-data is no base64".to_owned(),
        ),
        (
            format!("client-certificate-data: {certificate}, client-key-data: {certificate}"),
            "client-key-data has no private key in PEM".to_owned(),
        ),
        (
            format!("client-certificate-data: {expired}, client-key-data: {its_key}"),
            "client-certificate-data expired at 2020-01-02T00:00:00Z".to_owned(),
        ),
        (
            format!("client-certificate: '{missing}', client-key-data: {key}"),
            format!("client-certificate is {missing}: No such file"),
        ),
    ] {
        let message = files.refusal(&text(GOOD, &user));
        assert!(message.starts_with(&format!("users[me].user.{expected}")), "{user}\n{message}");
        assert!(!message.contains("hush") && !message.contains(&key), "{message}");
    }
    let good =
        format!("client-certificate-data: {certificate}, client-key-data: {key}, token: '', tokenFile: ''");
    let chosen = load(&files.put("kubeconfig", &text(GOOD, &good))).unwrap();
    assert!(!chosen.anonymous);
}

#[test]
fn a_file_of_a_token_goes_before_the_token_and_nobody_is_told_from_an_unknown_user() {
    let files = Files::new();
    files.put("token", "from-file\n");
    let chosen = load(&files.put("kubeconfig", &text(GOOD, "token: inline, tokenFile: token"))).unwrap();
    let user = chosen.kubeconfig.auth_infos[0].auth_info.as_ref().unwrap();
    assert!(user.token.is_none() && user.token_file.is_none());
    assert_eq!(chosen.token.unwrap().header(std::time::Instant::now()), "Bearer from-file");
    for user in ["", "user: ''", "user: null"] {
        let named = text(GOOD, "token: t").replace("user: me}", &format!("{user}}}"));
        let chosen = load(&files.put("kubeconfig", &named)).unwrap();
        assert!(chosen.anonymous && chosen.token.is_none(), "{user}");
    }
    assert!(load(&files.put("kubeconfig", &text(GOOD, ""))).unwrap().anonymous);
}
