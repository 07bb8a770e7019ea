package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// natsFlags are the flags of a connection that depend on neither the command
// nor the cluster. What they are embedded in gives them their group and the
// beginning of their variables' names.
type natsFlags struct {
	Prefix   prefix      `placeholder:"PREFIX" default:"cantus" env:"PREFIX" help:"What the cluster's subjects begin with."`
	Creds    string      `placeholder:"FILE" env:"CREDS" type:"existingfile" help:"NATS credentials file."`
	NKey     string      `name:"nkey" placeholder:"FILE" env:"NKEY" type:"existingfile" help:"File with an NKey seed."`
	User     string      `placeholder:"NAME" env:"USER" help:"NATS user name."`
	Password string      `placeholder:"TEXT" env:"PASSWORD" help:"NATS password; the variable keeps it out of the process list."`
	Token    string      `placeholder:"TEXT" env:"TOKEN" help:"NATS token; the variable keeps it out of the process list."`
	Inbox    inboxPrefix `name:"inbox-prefix" placeholder:"PREFIX" default:"_INBOX" env:"INBOX_PREFIX" help:"What the subjects of answers begin with."`
	TLSCA    string      `name:"tls-ca" placeholder:"FILE" env:"TLS_CA" type:"existingfile" help:"PEM file of the authorities that the server's certificate is checked against, instead of the system's."`
	TLSCert  string      `name:"tls-cert" placeholder:"FILE" env:"TLS_CERT" type:"existingfile" help:"PEM file of the client's own certificate."`
	TLSKey   string      `name:"tls-key" placeholder:"FILE" env:"TLS_KEY" type:"existingfile" help:"PEM file of its key."`
}

// connection holds the flags by which a client command finds the cluster.
type connection struct {
	Server  string   `group:"connection" placeholder:"URL,…" default:"nats://127.0.0.1:4222" env:"CANTUS_SERVER" help:"NATS servers to try, separated by commas."`
	Timeout duration `group:"connection" placeholder:"TIME" default:"5s" env:"CANTUS_TIMEOUT" help:"How long to wait for a connection, and for an answer."`

	natsFlags `group:"connection" envprefix:"CANTUS_"`
}

// natsConn is a client command's connection.
type natsConn struct {
	nc      *nats.Conn
	names   subjects.Names
	server  string
	timeout time.Duration
	// starting is until when a node may be starting, that does not answer yet.
	starting time.Time

	mu      sync.Mutex // guards waiting
	waiting map[*context.CancelCauseFunc]struct{}
}

// errConnLost says that a request or its answer may have been lost with the
// connection, which is opened again without further action.
var errConnLost = errors.New("connection lost")

// errNewLeader says that a partition has a new leader, so that an answer of the
// one before may never come.
var errNewLeader = errors.New("a partition has a new leader")

// leaderPause is the minimum time between two advisories that end requests, so
// that forged ones only slow a command down.
const leaderPause = 5 * time.Second

// watchLeaders ends all requests with errNewLeader when a partition has a new
// leader; callers try again.
func (l *natsConn) watchLeaders() error {
	var last time.Time
	_, err := l.nc.Subscribe(l.names.Advisory("leader"), func(*nats.Msg) {
		if time.Since(last) < leaderPause {
			return
		}
		last = time.Now()
		l.trouble(errNewLeader)
	})
	return err
}

// newNATSConn returns what becomes a connection to a server once nc is set.
func newNATSConn(prefix, server string) *natsConn {
	return &natsConn{
		waiting: map[*context.CancelCauseFunc]struct{}{},
		names:   subjects.Names{Prefix: prefix},
		server:  server,
		timeout: 5 * time.Second,
	}
}

// handlers returns the options by which requests learn that they will not be
// answered.
func (l *natsConn) handlers(c *connection) []nats.Option {
	return []nats.Option{
		nats.DisconnectErrHandler(func(*nats.Conn, error) { l.trouble(errConnLost) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrPermissionViolation) {
				l.trouble(c.forbidden(err))
			}
		}),
	}
}

// open connects, and fails at once if no server is there, or when ctx ends. The
// caller closes it.
func (c *connection) open(ctx context.Context, command string) (*natsConn, error) {
	l := newNATSConn(string(c.Prefix), c.Server)
	l.timeout = time.Duration(c.Timeout)
	if c.Server == "" {
		return nil, usagef("no server is named, since the flag or its variable is empty: write nats://HOST:PORT")
	}
	opts, err := c.options()
	if err != nil {
		return nil, err
	}
	opts = append(append(opts, l.handlers(c)...),
		nats.Name("cantus "+command),
		nats.CustomInboxPrefix(string(c.Inbox)),
		nats.Timeout(l.timeout),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(250*time.Millisecond),
	)
	type connected struct {
		nc  *nats.Conn
		err error
	}
	done := make(chan connected, 1)
	go func() { // which nats.Connect can't be told to end
		nc, err := nats.Connect(c.Server, opts...)
		done <- connected{nc, err}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return nil, connectFailure(c.Server, r.err)
		}
		l.nc, l.starting = r.nc, time.Now().Add(l.timeout)
		if err := l.checkInbox(ctx, c); err != nil {
			l.close()
			return nil, err
		}
		return l, nil
	case <-ctx.Done():
		return nil, l.explain(ctx.Err())
	}
}

// checkInbox fails if the NATS server does not let the user subscribe to its
// inbox. A request would still be carried out, but its answer would never
// arrive.
func (l *natsConn) checkInbox(ctx context.Context, c *connection) error {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	sub, err := l.nc.SubscribeSync(l.nc.NewInbox())
	if err != nil {
		return err
	}
	if err := l.nc.FlushWithContext(ctx); err != nil {
		return l.explain(err)
	}
	if err := l.nc.LastError(); errors.Is(err, nats.ErrPermissionViolation) {
		return c.forbidden(err)
	}
	return sub.Unsubscribe()
}

// forbidden is the failure for what the NATS server does not permit.
func (c *connection) forbidden(err error) error {
	hint := ""
	if strings.Contains(err.Error(), fmt.Sprintf("Subscription to \"%s.", c.Inbox)) {
		hint = ": give --inbox-prefix, such as _INBOX_" + cmp.Or(c.User, "operator")
	}
	return usagef("the NATS server does not permit this user to do that: %w%s", err, hint)
}

func (c *connection) options() ([]nats.Option, error) {
	var opts []nats.Option
	if c.Creds != "" {
		opts = append(opts, nats.UserCredentials(c.Creds))
	}
	if c.NKey != "" {
		opt, err := nats.NkeyOptionFromSeed(c.NKey)
		if err != nil {
			return nil, usagef("--nkey %s: %w", c.NKey, err)
		}
		opts = append(opts, opt)
	}
	if c.Password != "" && c.User == "" {
		return nil, usagef("--password needs --user")
	}
	if c.User != "" {
		opts = append(opts, nats.UserInfo(c.User, c.Password))
	}
	if c.Token != "" {
		opts = append(opts, nats.Token(c.Token))
	}
	config, err := c.tlsConfig()
	if config != nil {
		opts = append(opts, nats.Secure(config))
	}
	return opts, err
}

// tlsConfig returns the configuration of the TLS flags, nil if there are none.
func (c *connection) tlsConfig() (*tls.Config, error) {
	if (c.TLSCert == "") != (c.TLSKey == "") {
		return nil, usagef("--tls-cert and --tls-key go together")
	}
	if c.TLSCA == "" && c.TLSCert == "" {
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.TLSCA != "" {
		text, err := readBounded(c.TLSCA)
		if err != nil {
			return nil, usagef("--tls-ca: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(text) {
			return nil, usagef("--tls-ca %s holds no certificate in PEM form", c.TLSCA)
		}
	}
	if c.TLSCert != "" {
		pair, err := tls.LoadX509KeyPair(c.TLSCert, c.TLSKey)
		if err != nil {
			return nil, usagef("--tls-cert %s, --tls-key %s: %w", c.TLSCert, c.TLSKey, err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

func connectFailure(server string, err error) error {
	switch {
	case errors.Is(err, nats.ErrNoServers):
		return failf(exitUnavailable, "no NATS server answers at %s: start a node with \"cantus serve\", "+
			"or name another server with --server or CANTUS_SERVER", server)
	case errors.Is(err, nats.ErrAuthorization):
		return usagef("the NATS server at %s refuses these credentials: see --creds, --nkey, --token, or --user with --password (CANTUS_USER, CANTUS_PASSWORD)", server)
	case errors.Is(err, nats.ErrTimeout), isTimeout(err):
		return failf(exitUnavailable, "no answer from %s in time: is it the NATS port, 4222 by default, and not the one for HTTP? --timeout waits longer", server)
	case errors.Is(err, nats.ErrTLS), isTLSAlert(err):
		return usagef("connect to %s: %w; see --tls-ca, --tls-cert and --tls-key", server, err)
	case isURLError(err):
		return usagef("--server %s: %w; write nats://HOST:PORT", server, err)
	}
	return failf(exitUnavailable, "connect to %s: %w", server, err)
}

// isTimeout reports whether a connection was made and nothing was received.
func isTimeout(err error) bool {
	e, ok := errors.AsType[*net.OpError](err)
	return ok && e.Op == "read" && e.Timeout()
}

// isTLSAlert reports whether the other side ended TLS. A server that requires a
// client certificate does so some time after the handshake.
func isTLSAlert(err error) bool {
	var e *net.OpError
	return errors.As(err, &e) && e.Op == "remote error"
}

func isURLError(err error) bool {
	var e *url.Error
	return errors.As(err, &e)
}

func (l *natsConn) close() { l.nc.Close() }

// trouble is called on the connection's goroutines when a request will not be
// answered.
func (l *natsConn) trouble(why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for cancel := range l.waiting {
		(*cancel)(why)
	}
}

// untilTrouble returns a context that is cancelled, with the reason as its
// cause, when no answer will come. The caller must call stop.
func (l *natsConn) untilTrouble(ctx context.Context) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting[&cancel] = struct{}{}
	return ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.waiting, &cancel)
		cancel(nil)
	}
}

// request sends msg and waits for the one answer, for the connection's timeout
// at most. Without a subscriber the error is
// nats.ErrNoResponders.
func (l *natsConn) request(ctx context.Context, msg *nats.Msg) (*nats.Msg, error) {
	ctx, stop := l.untilTrouble(ctx)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	reply, err := l.nc.RequestMsgWithContext(ctx, msg)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return reply, err
}

// ask sends a JSON request, nil for an empty one, and decodes the answer.
func (l *natsConn) ask(ctx context.Context, subject string, request, answer any) error {
	msg := nats.NewMsg(subject)
	if request != nil {
		var err error
		if msg.Data, err = json.Marshal(request); err != nil {
			return err
		}
	}
	reply, err := l.request(ctx, msg)
	if err != nil {
		return err
	}
	if e := refused(reply); e != nil {
		return refusal(e)
	}
	if err := json.Unmarshal(reply.Data, answer); err != nil {
		return fmt.Errorf("%s answered no JSON that this version knows: %w", subject, err)
	}
	return nil
}

// cluster asks any node for the cluster's description, again and again while
// one may be starting: its NATS server is there before it answers.
func (l *natsConn) cluster(ctx context.Context) (subjects.ClusterInfo, error) {
	var info subjects.ClusterInfo
	err := l.ask(ctx, l.names.Info(), nil, &info)
	for errors.Is(err, nats.ErrNoResponders) && time.Now().Before(l.starting) {
		select {
		case <-ctx.Done():
			return info, l.explain(ctx.Err())
		case <-time.After(pollInterval / 2):
		}
		err = l.ask(ctx, l.names.Info(), nil, &info)
	}
	if errors.Is(err, nats.ErrNoResponders) {
		err = failf(exitUnavailable, "the NATS server at %s answers, but no Cantus node has answered under the prefix %q for %v: "+
			"a node that is starting or waits for others says so in its log; otherwise, is --prefix right, and does this user see the node's account? "+
			"\"cantus read P --replica NODE\" shows what a node has; if the others are lost for good, see docs/recover.md", l.server, l.names.Prefix, l.timeout)
	}
	return info, l.explain(err)
}

// noLeader returns why no leader answers for a partition.
func (l *natsConn) noLeader(ctx context.Context, p int) error {
	info, err := l.cluster(ctx)
	switch {
	case err != nil:
		return err
	case p >= info.Partitions:
		return usagef("partition %d does not exist: this cluster has %d (0 to %d)", p, info.Partitions, info.Partitions-1)
	}
	return failf(exitUnavailable, "partition %d has no leader at the moment: try again; \"cantus read %d --replica NODE\" shows what one node has, "+
		"and docs/recover.md says what to do if a majority of its nodes is lost", p, p)
}

// noAppends returns why nobody takes appends to a partition.
func (l *natsConn) noAppends(ctx context.Context, p int) error {
	if err := l.elsewhere(ctx, p); err != nil {
		return err
	}
	return l.noLeader(ctx, p)
}

// elsewhere returns an error if a partition is appended to in a namespace only.
// It is nil if its leader does not say so, or says it to others only.
func (l *natsConn) elsewhere(ctx context.Context, p int) error {
	info, err := l.cluster(ctx)
	if err == nil && info.Namespace == "" && p < info.Partitions {
		var of subjects.PartitionInfo
		if err := l.ask(ctx, l.names.PartitionInfo(p), nil, &of); err == nil && of.Namespace != "" {
			return usagef("partition %d belongs to the namespace %s, and is appended to there, as its partition %d: give --prefix %s and that number",
				p, of.Namespace, of.Number, l.names.Namespace(of.Namespace).Prefix)
		}
	}
	return nil
}

// inNamespaces returns which partitions belong to a namespace, as far as their
// leaders say so.
func (l *natsConn) inNamespaces(ctx context.Context, info subjects.ClusterInfo) (all []int) {
	if info.Namespace != "" {
		return nil
	}
	answers, _ := l.askPartitions(ctx, moment{}, info.Partitions) // without answers it is not known
	for p, answer := range answers {
		if answer.info != nil && answer.info.Namespace != "" {
			all = append(all, p)
		}
	}
	return all
}

// checkWhole returns an error if a description is that of a namespace: it has
// no operations.
func (l *natsConn) checkWhole(info subjects.ClusterInfo) error {
	if info.Namespace == "" {
		return nil
	}
	return usagef("the prefix %q leads to the namespace %s, and this command needs the whole cluster: use the cluster's own prefix, as a user of the nodes' account",
		l.names.Prefix, info.Namespace)
}

// noOperator returns why nobody answers an operation on a partition.
func (l *natsConn) noOperator(ctx context.Context, p int) error {
	info, err := l.cluster(ctx)
	if err == nil {
		err = l.checkWhole(info)
	}
	if err != nil {
		return err
	}
	return l.noLeader(ctx, p)
}

// explain rewords an error of the connection for the user, and returns other
// errors unchanged.
func (l *natsConn) explain(err error) error {
	switch {
	case errors.Is(err, context.Canceled):
		return errors.New("interrupted")
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		return failf(exitUnavailable, "no answer from %s within %v: --timeout waits longer", l.server, l.timeout)
	case errors.Is(err, errConnLost):
		return failf(exitUnavailable, "lost the connection to %s", l.server)
	case errors.Is(err, nats.ErrMaxPayload):
		return usagef("too large for the NATS server: its max_payload is %d bytes", l.nc.MaxPayload())
	}
	return err
}

// refused returns the refusal in a message, nil if there is none.
func refused(msg *nats.Msg) *subjects.Error {
	if msg.Header.Get(subjects.HeaderErrorCode) == "" {
		return nil
	}
	var body struct {
		Error *subjects.Error `json:"error"`
	}
	if json.Unmarshal(msg.Data, &body) == nil && body.Error != nil {
		return body.Error
	}
	return subjects.Errorf(subjects.Internal, "%s", msg.Header.Get(subjects.HeaderError))
}
