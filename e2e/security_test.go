//go:build unix

package e2e_test

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/cantuslog/cantus/internal/testcert"
	"github.com/cantuslog/cantus/internal/testkit"
)

// recipe is a section of docs/security.md: files and command lines for nodes on
// other machines. The test runs them on this one, in a directory of its own.
type recipe struct {
	t     *testing.T
	s     *newcomer
	lines []string // what is indented, with the comments
	ca    testcert.Authority
	nodes []*node
	env   []string            // the lines that set variables
	at    map[string]string   // the address here of one on the page
	extra func(*node, string) // what is started beside a node, by its line
}

// security takes a section out of docs/security.md, and writes its files.
func security(t *testing.T, section string) *recipe {
	t.Helper()
	text, err := os.ReadFile("../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "\n## "+section+"\n")
	if !found {
		t.Fatalf("docs/security.md has no section %q", section)
	}
	rest, _, _ = strings.Cut(rest, "\n## ")
	r := &recipe{t: t, s: newNewcomer(t), ca: testcert.NewAuthority(t), at: map[string]string{}}
	for _, name := range []string{"node", "app", "ops"} {
		r.ca.Files(name, time.Now().Add(time.Hour))
	}
	for _, f := range regexp.MustCompile("(?s)<!-- file: (\\S+) -->\n```\n(.*?)```").FindAllStringSubmatch(rest, -1) {
		r.write(f[1], r.here(f[2]))
	}
	fences := regexp.MustCompile("(?s)```\n.*?```")
	for line := range strings.Lines(strings.ReplaceAll(fences.ReplaceAllString(rest, ""), "\\\n", "")) {
		if command, ok := strings.CutPrefix(line, "    "); ok {
			r.lines = append(r.lines, strings.TrimSpace(command))
		}
	}
	return r
}

// file is the path here of a file in /etc/cantus.
func (r *recipe) file(name string) string { return filepath.Join(r.ca.Dir, name) }

func (r *recipe) write(name, text string) {
	r.t.Helper()
	if err := os.WriteFile(r.file(name), []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

var pageAddress = regexp.MustCompile(`(10\.0\.0\.\d|127\.0\.0\.1):\d+`)

// here returns a text of the page with the paths and addresses of this machine.
func (r *recipe) here(text string) string {
	text = strings.NewReplacer("/etc/cantus", r.ca.Dir, "/var/lib", r.s.dir).Replace(text)
	return pageAddress.ReplaceAllStringFunc(text, func(a string) string {
		if r.at[a] == "" {
			r.at[a] = freeAddress(r.t)
		}
		return r.at[a]
	})
}

// follow runs the lines. A line that starts with "# refused: " or "# open: "
// says what the one before it prints or logs.
func (r *recipe) follow(lines ...string) {
	r.t.Helper()
	for i, line := range lines {
		comment := ""
		if i+1 < len(lines) && strings.HasPrefix(lines[i+1], "# ") {
			comment = lines[i+1]
		}
		why, refused := strings.CutPrefix(comment, "# refused: ")
		open, opens := strings.CutPrefix(comment, "# open: ")
		switch {
		case line == "", strings.HasPrefix(line, "# "):
		case strings.HasPrefix(line, "export "):
			r.env = append(r.env, r.here(line))
		case strings.HasPrefix(line, "cantus serve ") && !refused:
			if !opens {
				r.t.Errorf("the page does not say what is open: %s", line)
			}
			r.serve(line, open)
		case refused:
			if !strings.HasPrefix(line, "cantus serve ") { // which opens no port
				line = r.here(line)
			}
			if out, status := r.run(strings.Replace(line, "/var/lib", r.s.dir+"/refused", 1)); status == 0 || !strings.Contains(out, why) {
				r.t.Errorf("%s: exit status %d; want %q in\n%s", line, status, why, out)
			}
		default:
			if out, status := r.run(r.here(line)); status != 0 {
				r.t.Errorf("%s: exit status %d\n%s", line, status, out)
			}
		}
	}
}

func (r *recipe) run(line string) (out string, status int) {
	r.t.Helper()
	return r.s.run(strings.Join(append(slices.Clone(r.env), line), "\n"))
}

// serve starts a node, and what is started beside it, and checks what the node
// logs as open.
func (r *recipe) serve(line, open string) {
	r.t.Helper()
	env := r.s.env
	r.s.env = append(slices.Clone(env), "CANTUS_HTTP=127.0.0.1:0")
	first := len(r.nodes)
	r.nodes = append(r.nodes, r.s.serve(r.here(line)))
	if r.extra != nil {
		r.extra(r.nodes[first], line)
	}
	r.s.env = env
	for _, n := range r.nodes[first:] {
		if err := n.awaitReady(); err != nil {
			r.t.Fatal(err)
		}
		testkit.Until(r.t, "the node logs what is open", func() bool { return n.running().stderr.has("open: ") })
		address := regexp.MustCompile(`127\.0\.0\.1:\d+`)
		got, want := address.ReplaceAllString(n.running().stderr.String(), "ADDRESS"), address.ReplaceAllString(r.here(open), "ADDRESS")
		if !strings.Contains(got, `msg="open: `+want+`"`) {
			r.t.Errorf("%s: want %q in\n%s", line, want, got)
		}
	}
}

// bodies are the payloads of requests that need one.
var bodies = map[string]string{"cantus.get.3": `{"txid":1}`, "cantus.get.0": `{"txid":1}`, "cantus.admin.trim.3": `{"before":1}`}

// everything is one request of each kind, for partitions 2 and 3.
var everything = []string{
	"cantus.append.2", "cantus.append.3", "cantus.append.key.alice", "cantus.batch.2", "cantus.read.3", "cantus.replica.read.3", "cantus.get.3",
	"cantus.info", "cantus.info.2", "cantus.info.3", "cantus.cursor.3.mailer", "cantus.cursor.3.other", "cantus.cursors.3",
	"cantus.cursor.3.billing", "cantus.cursor.3.billing-lease", "cantus.cursor.3.billing-member-0", "cantus.cursor.3.billing-member-1",
	"cantus.admin.status", "cantus.admin.batches.3", "cantus.admin.trim.3", "cantus.admin.cluster.balance", "$SRV.PING.cantus",
}

// check tries everything as a user.
func (r *recipe) check(who string, can []string, opts ...nats.Option) {
	r.t.Helper()
	nc := r.connect(append(opts, nats.CustomInboxPrefix("_INBOX_"+who))...)
	defer nc.Close()
	for _, subject := range everything {
		denied, err := r.request(nc, subject)
		if wants := slices.Contains(can, subject); denied == wants || wants && err != nil {
			r.t.Errorf("%s requests %s: denied is %t, %v", who, subject, denied, err)
		}
	}
	for _, subject := range []string{"cantus.packed.0", "cantus.feed.0.tx", "cantus.advisory.leader", "$SYS.REQ.USER.INFO"} {
		if denied, _ := r.request(nc, subject); !denied {
			r.t.Errorf("%s publishes %s", who, subject)
		}
	}
	for _, subject := range []string{"cantus.append.>", "cantus.admin.>", ">", "_INBOX.>"} {
		if !r.denied(nc, func() error { _, err := nc.SubscribeSync(subject); return err }) {
			r.t.Errorf("%s subscribes to %s", who, subject)
		}
	}
}

// request asks for something. It reports whether NATS denies that, and returns
// an error if there is no good answer.
func (r *recipe) request(nc *nats.Conn, subject string) (denied bool, err error) {
	r.t.Helper()
	if r.denied(nc, func() error { return nc.Publish(subject, []byte(bodies[subject])) }) {
		return true, nil
	}
	m, err := nc.Request(subject, []byte(bodies[subject]), patience)
	if err == nil && m.Header.Get("Nats-Service-Error") != "" {
		err = errors.New(m.Header.Get("Nats-Service-Error"))
	}
	return false, err
}

// denied does something, and reports whether NATS denies it.
func (r *recipe) denied(nc *nats.Conn, do func() error) bool {
	r.t.Helper()
	before := nc.LastError()
	if err := errors.Join(do(), nc.FlushTimeout(patience)); err != nil {
		r.t.Fatal(err)
	}
	err := nc.LastError()
	return !errors.Is(err, before) && errors.Is(err, nats.ErrPermissionViolation)
}

func (r *recipe) connect(opts ...nats.Option) *nats.Conn {
	r.t.Helper()
	opts = append(opts, nats.Timeout(patience), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	nc, err := nats.Connect(r.at["10.0.0.1:4222"], opts...)
	if err != nil {
		r.t.Fatal(err)
	}
	return nc
}

func TestSecurityWhatIsOpen(t *testing.T) {
	t.Parallel()
	r := security(t, "What is open")
	r.s.env = append(r.s.env, "CANTUS_LISTEN=127.0.0.1:0")
	r.follow(r.lines...)
	if len(r.nodes) != 1 {
		t.Errorf("the page starts %d nodes", len(r.nodes))
	}
}

func TestSecurityTLS(t *testing.T) {
	t.Parallel()
	r := security(t, "TLS for clients")
	r.follow(r.lines...)
	if len(r.nodes) != 1 || len(r.lines) < 8 {
		t.Errorf("the page starts %d nodes", len(r.nodes))
	}
}

// TestSecurityRoles tries everything as each user of the page.
func TestSecurityRoles(t *testing.T) {
	t.Parallel()
	r := security(t, "Users and roles")
	key, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, _ := key.PublicKey()
	seed, err := key.Seed()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(r.file("roles.conf"))
	if err != nil {
		t.Fatal(err)
	}
	r.write("roles.conf", regexp.MustCompile(`\bU[A-Z2-7]{55}\b`).ReplaceAllString(string(text), public))
	r.write("mailer.seed", string(seed))
	r.follow(r.lines...)

	nkey, err := nats.NkeyOptionFromSeed(r.file("mailer.seed"))
	if err != nil {
		t.Fatal(err)
	}
	reads := []string{"cantus.read.3", "cantus.replica.read.3", "cantus.get.3", "cantus.info", "cantus.info.2", "cantus.info.3"}
	r.check("orders", []string{"cantus.append.3", "cantus.info", "cantus.info.3"}, nats.UserInfo("orders", "secret"))
	r.check("report", reads, nats.UserInfo("report", "secret"))
	r.check("mailer", append(slices.Clone(reads), "cantus.cursor.3.mailer"), nkey)
	r.check("billing", []string{
		"cantus.read.3", "cantus.get.3", "cantus.info", "cantus.info.2", "cantus.info.3", "cantus.cursor.3.billing", "cantus.cursor.3.billing-lease",
		"cantus.cursor.3.billing-member-0", "cantus.cursor.3.billing-member-1",
	}, nats.UserInfo("billing", "secret"))
	r.check("ops", []string{
		"cantus.info", "cantus.info.2", "cantus.info.3", "cantus.cursors.3", "cantus.admin.status", "cantus.admin.batches.3", "cantus.admin.trim.3",
		"cantus.admin.cluster.balance", "$SRV.PING.cantus",
	}, nats.UserInfo("ops", "secret"))
	if _, err := nats.Connect(r.at["10.0.0.1:4222"], nats.UserInfo("ops", "wrong")); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("with a wrong password: %v", err)
	}
}

// TestSecurityOperators makes by itself what the page's nsc commands make, with
// the permissions that are on the page.
func TestSecurityOperators(t *testing.T) {
	t.Parallel()
	r := security(t, "Operators and JWTs")
	o := newNSC(t)
	permissions := regexp.MustCompile(`^nsc add user --account LOG --name (\w+)(?: +--allow-pub (\S+) +--allow-sub '(\S+)')?$`)
	users := map[string]bool{}
	var lines []string
	for _, line := range r.lines {
		if u := permissions.FindStringSubmatch(line); u != nil {
			r.write(u[1]+".creds", o.credentials(func(claims *jwt.UserClaims) {
				if u[2] != "" {
					claims.Pub.Allow.Add(strings.Split(u[2], ",")...)
					claims.Sub.Allow.Add(strings.Split(u[3], ",")...)
				}
			}))
			users[u[1]] = true
		}
		if !strings.HasPrefix(line, "nsc ") {
			lines = append(lines, regexp.MustCompile(`\bA[A-Z2-7]{55}\b`).ReplaceAllString(line, o.accountID))
		}
	}
	if !users["node"] || !users["orders"] {
		t.Fatalf("the page makes the users %v", users)
	}
	r.write("operator.conf", o.config())
	r.follow(lines...)
	r.check("orders", []string{"cantus.append.3", "cantus.info", "cantus.info.3"}, nats.UserCredentials(r.file("orders.creds")))
}

// nsc makes an operator with an account, and its users.
type nsc struct {
	t                 *testing.T
	operator, account nkeys.KeyPair
	operatorID        string
	accountID         string
}

func newNSC(t *testing.T) *nsc {
	n := &nsc{t: t}
	n.operator, n.operatorID = n.key(nkeys.CreateOperator)
	n.account, n.accountID = n.key(nkeys.CreateAccount)
	return n
}

func (n *nsc) key(create func() (nkeys.KeyPair, error)) (nkeys.KeyPair, string) {
	n.t.Helper()
	k, err1 := create()
	public, err2 := k.PublicKey()
	if err := errors.Join(err1, err2); err != nil {
		n.t.Fatal(err)
	}
	return k, public
}

func (n *nsc) encode(c jwt.Claims, by nkeys.KeyPair) string {
	n.t.Helper()
	token, err := c.Encode(by)
	if err != nil {
		n.t.Fatal(err)
	}
	return token
}

func (n *nsc) config() string {
	_, systemID := n.key(nkeys.CreateAccount)
	claims := jwt.NewOperatorClaims(n.operatorID)
	claims.SystemAccount = systemID
	return fmt.Sprintf("operator: %s\nsystem_account: %s\nresolver: MEMORY\nresolver_preload: { %s: %s, %s: %s }\n", n.encode(claims, n.operator), systemID,
		n.accountID, n.encode(jwt.NewAccountClaims(n.accountID), n.operator), systemID, n.encode(jwt.NewAccountClaims(systemID), n.operator))
}

// credentials returns the credentials file of a user that permit has changed.
func (n *nsc) credentials(permit func(*jwt.UserClaims)) string {
	n.t.Helper()
	user, id := n.key(nkeys.CreateUser)
	claims := jwt.NewUserClaims(id)
	permit(claims)
	seed, err1 := user.Seed()
	text, err2 := jwt.FormatUserConfig(n.encode(claims, n.account), seed)
	if err := errors.Join(err1, err2); err != nil {
		n.t.Fatal(err)
	}
	return string(text)
}

// TestSecuritySeveralServices checks that the services of the page don't meet.
func TestSecuritySeveralServices(t *testing.T) {
	testkit.NotShort(t, "it starts several processes or nodes")
	t.Parallel()
	r := security(t, "Several services in one cluster")
	r.follow(r.lines...)
	if len(r.nodes) != 2 {
		t.Fatalf("the page starts %d nodes", len(r.nodes))
	}
	as := func(who string) *nats.Conn {
		return r.connect(nats.UserInfo(who, "secret"), nats.CustomInboxPrefix("_INBOX_"+who))
	}
	orders, billing := as("orders"), as("billing")
	defer orders.Close()
	defer billing.Close()
	for p := range 4 {
		for _, kind := range []string{"append", "read", "replica.read", "get", "info"} {
			subject := fmt.Sprintf("cantus.%s.%d", kind, p)
			for user, nc := range map[string]*nats.Conn{"orders": orders, "billing": billing} {
				denied, err := r.request(nc, subject)
				if nobody := errors.Is(err, nats.ErrNoResponders); denied || nobody == (p < 2) {
					t.Errorf("%s requests %s: denied is %t, %v", user, subject, denied, err)
				}
			}
		}
	}
	if denied, err := r.request(orders, "cantus.append.key.alice"); denied || err != nil {
		t.Errorf("orders appends by key: denied is %t, %v", denied, err)
	}
	for _, subject := range []string{"cantus.packed.1", "cantus.admin.status", "cantus.cursors.0", "cantus.ns.billing.append.0"} {
		if denied, err := r.request(orders, subject); !denied {
			t.Errorf("orders requests %s: %v", subject, err)
		}
	}

	// The feed of its own partitions only. The other's was sent before.
	mine, err1 := orders.SubscribeSync("cantus.packed.*")
	others, err2 := billing.SubscribeSync("cantus.packed.*")
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	testkit.Until(t, "billing hears its feed", func() bool {
		_, err1 := r.request(billing, "cantus.append.1")
		m, err2 := others.NextMsg(100 * time.Millisecond)
		return err1 == nil && err2 == nil && m.Subject == "cantus.packed.1"
	})
	testkit.Until(t, "orders hears its feed", func() bool {
		_, err1 := r.request(orders, "cantus.append.0")
		m, err2 := mine.NextMsg(100 * time.Millisecond)
		if err2 == nil && m.Subject != "cantus.packed.0" {
			t.Fatalf("orders hears %s", m.Subject)
		}
		return err1 == nil && err2 == nil
	})

	open := 1 // orders
	for ; open < 50; open++ {
		nc, err := nats.Connect(r.at["10.0.0.1:4222"], nats.UserInfo("orders", "secret"))
		if err != nil {
			break
		}
		defer nc.Close()
	}
	if open != 10 {
		t.Errorf("the account opened %d connections", open)
	}
	as("billing").Close() // has its own
}

// TestSecurityCluster runs the page's cluster over mutual TLS, renews its
// certificates, and replaces its token.
func TestSecurityCluster(t *testing.T) {
	testkit.NotShort(t, "it starts several processes or nodes")
	t.Parallel()
	r := security(t, "Certificates everywhere")
	var others []string // the lines of n2 and n3
	r.extra = func(_ *node, line string) {
		others = nil
		for _, n := range []string{"2", "3"} {
			other := strings.NewReplacer("--name n1", "--name n"+n, "10.0.0.1", "10.0.0."+n, "10.0.0."+n, "10.0.0.1", "lib/cantus", "lib/cantus-n"+n).Replace(line)
			others = append(others, other)
			r.nodes = append(r.nodes, r.s.serve(r.here(other)))
		}
	}
	r.follow(r.lines...)
	if len(r.nodes) != 3 {
		t.Fatalf("the page starts %d nodes", len(r.nodes))
	}
	r.renew()
	r.replaceToken()
}

// secure connects as the user of a certificate.
func (r *recipe) secure(name string, opts ...nats.Option) *nats.Conn {
	return r.connect(append(opts, nats.RootCAs(r.ca.CAFile()), nats.ClientCert(r.file(name+".crt"), r.file(name+".key")))...)
}

// serials returns the serial numbers of the certificates that all ports
// present.
func (r *recipe) serials() map[string]string {
	serials := map[string]string{}
	for there, here := range r.at {
		if strings.HasPrefix(there, "10.0.0.") {
			serials[there] = serial(r.t, r.ca, here, strings.HasSuffix(there, ":4222"))
		}
	}
	return serials
}

// lasting returns the established connections once they have not changed for a
// number of looks: nodes that have just started close those that two of them
// have opened to each other at the same time.
func lasting(t *testing.T, at map[string]string) (connections map[string]bool) {
	t.Helper()
	same := 0
	testkit.Until(t, "the connections are steady", func() bool {
		now := established(t, at)
		if same++; !maps.Equal(now, connections) {
			connections, same = now, 0
		}
		return same == 500
	})
	return connections
}

// renew replaces the certificates. No connection breaks, and new ones get the
// new certificates.
func (r *recipe) renew() {
	t := r.t
	lines := security(t, "Renewing certificates").lines
	if !slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, "kill -HUP ") }) {
		t.Fatalf("the page renews certificates by %q", lines)
	}
	broken := make(chan error, 8)
	nc := r.secure("app", nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { broken <- err }))
	defer nc.Close()
	if _, err := nc.Request("cantus.append.0", nil, patience); err != nil {
		t.Fatal(err)
	}
	old, before := r.serials(), lasting(t, r.at)
	for _, name := range []string{"node", "app"} {
		r.ca.Files(name, time.Now().Add(time.Hour)) // into the same files
	}
	for _, n := range r.nodes {
		if err := n.running().cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		testkit.Until(t, "it has reloaded", func() bool { return n.running().stderr.has("reloaded: ") })
	}
	for where, now := range r.serials() {
		if now == old[where] {
			t.Errorf("%s presents the old certificate", where)
		}
	}
	if len(old) != 9 {
		t.Errorf("the ports are %v", old)
	}
	if m, err := nc.Request("cantus.append.0", nil, patience); err != nil || m.Header.Get("Nats-Service-Error") != "" {
		t.Errorf("an append on the old connection: %v, %v", m, err)
	}
	r.secure("app").Close()
	select {
	case err := <-broken:
		t.Errorf("the client's connection broke: %v", err)
	default:
	}
	for c := range before {
		if !established(t, r.at)[c] {
			t.Errorf("the connection %s has ended", c)
		}
	}
	for _, line := range lines {
		if strings.HasPrefix(line, "openssl ") {
			if out, status := r.run(r.here(line)); status != 0 || !strings.Contains(out, "serial=") {
				t.Errorf("%s: exit status %d\n%s", line, status, out)
			}
		}
	}
}

// established returns the connections between the nodes, and with the client
// that is open, that this machine has. Only Linux says what they are.
func established(t *testing.T, at map[string]string) map[string]bool {
	t.Helper()
	ports := map[string]bool{}
	for there, here := range at {
		if strings.HasPrefix(there, "10.0.0.") {
			_, port, _ := net.SplitHostPort(here)
			ports[port] = true
		}
	}
	found := map[string]bool{}
	text, err := os.ReadFile("/proc/net/tcp")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 4 || fields[3] != "01" {
			continue
		}
		for _, end := range fields[1:3] {
			_, hex, _ := strings.Cut(end, ":")
			var port int
			if _, err := fmt.Sscanf(hex, "%x", &port); err == nil && ports[fmt.Sprint(port)] {
				found[fields[1]+" to "+fields[2]] = true
			}
		}
	}
	if len(found) < 6 {
		t.Errorf("the nodes have the connections %v", found)
	}
	return found
}

// replaceToken replaces the cluster's token. What it has stored stays.
func (r *recipe) replaceToken() {
	t := r.t
	lines := security(t, "The cluster's token").lines
	if !slices.Equal(lines, []string{"systemctl stop cantus", "rm /var/lib/cantus/cluster.key"}) {
		t.Fatalf("the page replaces the token by %q", lines)
	}
	for _, n := range r.nodes {
		if err := n.stop(); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"", "-n2", "-n3"} {
		if err := os.Remove(filepath.Join(r.s.dir, "cantus"+dir, "cluster.key")); err != nil {
			t.Fatal(err)
		}
	}
	was, err := os.ReadFile(r.file("token"))
	if err != nil {
		t.Fatal(err)
	}
	start := slices.IndexFunc(r.lines, func(l string) bool { return strings.HasPrefix(l, "(umask ") })
	r.nodes, r.env = nil, nil
	r.follow(r.lines[start:]...)
	if is, err := os.ReadFile(r.file("token")); err != nil || string(is) == string(was) {
		t.Errorf("the token is %q again, %v", is, err)
	}
	nc := r.secure("app")
	defer nc.Close()
	if m, err := nc.Request("cantus.get.0", []byte(`{"txid":1}`), patience); err != nil || strings.TrimSpace(string(m.Data)) != "hello" {
		t.Errorf("the first transaction is %v, %v", m, err)
	}
}
