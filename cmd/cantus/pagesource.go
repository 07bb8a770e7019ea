package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/cmd/internal/page"
	"github.com/cantuslog/cantus/subjects"
)

// pageSource is what the page of a node shows. It has no node before attach:
// the page is there while the node waits for others. A nil one is of no page.
type pageSource struct {
	page   *page.Page
	prefix string
	node   atomic.Pointer[pageNode]
}

// pageNode is a node that serves, and a connection for its status.
type pageNode struct {
	*broker.Node
	status *natsConn
}

// newPage adds a page to the options of a node, and returns what the page
// shows, nil for no page.
func (c *serveFlags) newPage(o *broker.Options) *pageSource {
	if c.Page == "off" || c.HTTP == "" {
		return nil
	}
	s := &pageSource{prefix: string(c.Prefix)}
	po := page.Options{Source: s, Full: c.Page == "full", Logger: o.Logger}
	if name, err := os.Hostname(); err == nil {
		po.Hosts = append(po.Hosts, name)
	}
	s.page = page.New(po)
	o.HTTPHandler = s.page
	return s
}

// checkPage refuses a page with transactions on a port that others reach.
func (c *serveFlags) checkPage() error {
	if c.Page != "full" || c.HTTP == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(string(c.HTTP))
	if err != nil {
		return fmt.Errorf("--http: %w", err)
	}
	if ip := net.ParseIP(host); host == "localhost" || ip != nil && ip.IsLoopback() {
		return nil
	}
	return fmt.Errorf("--page full shows transactions, and the page has no TLS: --http must be on loopback, such as 127.0.0.1:8222, and not %s", c.HTTP)
}

// attach lets the page show a node. The function that it returns ends that, and
// all sessions.
func (s *pageSource) attach(node *broker.Node, log *slog.Logger) (detach func()) {
	if s == nil {
		return func() {}
	}
	l := newNATSConn(s.prefix, "this node")
	nc, err := node.Conn(l.handlers(&connection{})...)
	if err != nil {
		log.Warn("the page shows nothing", "err", err)
		return s.page.Close
	}
	l.nc = nc
	s.node.Store(&pageNode{node, l})
	return func() {
		s.page.Close()
		s.node.Store(nil)
		l.close()
	}
}

// errNotServing is what the page says while the node waits or stops.
var errNotServing = errors.New("the node does not serve yet, or stops: its log and /readyz say what it waits for")

// pageStatus is what the page shows to everybody that reaches the port. It has
// no text of transactions, and no addresses.
type pageStatus struct {
	Text       string          `json:"text"` // the first line of status
	Safe       bool            `json:"safe"`
	Node       string          `json:"node"` // whose page it is
	AnsweredBy string          `json:"answered_by"`
	Time       time.Time       `json:"time"`
	Cluster    string          `json:"cluster"`
	Version    string          `json:"version"`
	Nodes      []pageNodeState `json:"nodes"`
	Partitions []pagePartition `json:"partitions"`
}

type pageNodeState struct {
	Name    string `json:"name"`
	State   string `json:"state"` // as status prints it
	Up      bool   `json:"up"`
	Standby bool   `json:"standby,omitempty"`
	Version string `json:"version,omitempty"`
	// Replicas counts the partitions of which it should have a replica, Leading
	// those that it leads.
	Replicas int       `json:"replicas"`
	Leading  int       `json:"leading"`
	Since    time.Time `json:"since,omitzero"`
	IfLost   string    `json:"if_lost,omitempty"` // what stops if it fails
}

type pagePartition struct {
	Partition int           `json:"partition"`
	Leader    string        `json:"leader"`
	Term      uint64        `json:"term,string"`
	Mark      uint64        `json:"mark,string"`
	First     uint64        `json:"first,string"`
	Locks     int           `json:"locks"`
	Capacity  int           `json:"capacity"`
	Floor     uint64        `json:"floor,string"`
	Trouble   string        `json:"trouble,omitempty"`
	Replicas  []pageReplica `json:"replicas"`
}

type pageReplica struct {
	Name     string `json:"name"`
	State    string `json:"state"`
	Voter    bool   `json:"voter"`
	CaughtUp bool   `json:"caught_up"`
	Mark     uint64 `json:"mark,string"`
}

// Status implements [page.Source].
func (s *pageSource) Status(ctx context.Context) (any, error) {
	node := s.node.Load()
	if node == nil {
		return nil, errNotServing
	}
	found, err := node.status.survey(ctx, moment{})
	if err != nil {
		return nil, err
	}
	return statusOfPage(found, node.Name()), nil
}

// statusOfPage returns what the page shows of a survey.
func statusOfPage(found survey, node string) *pageStatus {
	health := assess(found).health
	st := &pageStatus{
		Text: health.Text, Safe: health.Safe, Node: node, AnsweredBy: health.AnsweredBy, Time: time.Now().UTC(),
		Cluster: found.cluster.Cluster, Version: found.cluster.Version,
	}
	lost := map[string]string{}
	for _, l := range health.Losses {
		lost[l.Node] = l.text(len(found.partitions))
	}
	if found.status != nil {
		st.Time = found.status.Time
		for _, n := range found.status.Nodes {
			st.Nodes = append(st.Nodes, pageNodeState{
				Name: n.Name, State: nodeState(n, found.status.Time), Up: n.Alive && n.Ready, Standby: n.State == "standby", Version: n.Version,
				Replicas: n.Replicas, Leading: n.Leading, Since: n.Since, IfLost: lost[n.Name],
			})
		}
	}
	for p, a := range found.partitions {
		st.Partitions = append(st.Partitions, partitionOfPage(found, p, a))
	}
	return st
}

// partitionOfPage returns a partition as its leader sees it, with what the node
// that answered knows of the replicas.
func partitionOfPage(found survey, p int, a partitionAnswer) pagePartition {
	shown := pagePartition{Partition: p}
	var known []subjects.ReplicaStatus
	if found.status != nil && p < len(found.status.Partitions) {
		known = found.status.Partitions[p].Replicas
	}
	i := a.info
	if i == nil {
		shown.Trouble = cmp.Or(string(a.refused), "no answer: "+a.silent)
		if a.leaderless() {
			shown.Trouble = "no leader"
		}
		for _, r := range known {
			shown.Replicas = append(shown.Replicas, pageReplica{r.Name, r.State, r.Voter, r.CaughtUp, r.HighWaterMark})
		}
		return shown
	}
	shown.Leader, shown.Term, shown.Mark, shown.First = i.Leader, i.Term, i.HighWaterMark, i.FirstTxid
	shown.Locks, shown.Capacity, shown.Floor = i.Locks.Tracked, i.Locks.Capacity, i.Locks.Floor
	switch {
	case i.StorageFull != "":
		shown.Trouble = "refuses appends: storage_full"
	case i.MirrorOf != "":
		shown.Trouble = "a mirror: takes no appends"
	case i.Restoring:
		shown.Trouble = "is being restored: takes no appends"
	}
	for _, r := range i.Replicas {
		caughtUp := false
		for _, k := range known {
			caughtUp = caughtUp || k.Name == r.Name && k.CaughtUp
		}
		shown.Replicas = append(shown.Replicas, pageReplica{r.Name, r.State, r.Voter, caughtUp, r.HighWaterMark})
	}
	return shown
}

// Login implements [page.Source].
func (s *pageSource) Login(ctx context.Context, c page.Credentials) (page.Viewer, error) {
	node := s.node.Load()
	if node == nil {
		return nil, errNotServing
	}
	inboxes := []string{c.Inbox}
	if c.Inbox == "" {
		if inboxes[0] = "_INBOX"; c.User != "" {
			inboxes = append(inboxes, "_INBOX_"+c.User)
		}
	}
	var err error
	for _, inbox := range inboxes {
		var v *pageViewer
		if v, err = s.loginWith(ctx, node.Node, c, inbox); err == nil {
			return v, nil
		}
		if !errors.Is(err, errInbox) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("the NATS server does not let this user subscribe to %s: give the inbox prefix", strings.Join(inboxes, ".> or ")+".>")
}

// errInbox is returned for an inbox that a user may not subscribe to.
var errInbox = errors.New("no inbox")

// loginWith logs in with a prefix of inboxes.
func (s *pageSource) loginWith(ctx context.Context, node *broker.Node, c page.Credentials, inbox string) (*pageViewer, error) {
	var prefix inboxPrefix
	if err := prefix.UnmarshalText([]byte(inbox)); err != nil {
		return nil, fmt.Errorf("inbox prefix: %w: give one", err)
	}
	v := &pageViewer{user: c.User, done: make(chan struct{}), conn: newNATSConn(s.prefix, "this node")}
	if c.Token != "" {
		v.user = "token"
	}
	flags := &connection{natsFlags: natsFlags{Inbox: prefix, User: c.User}}
	opts := append(v.conn.handlers(flags), nats.Name("cantus page"), nats.CustomInboxPrefix(inbox), nats.NoReconnect(),
		nats.ClosedHandler(func(*nats.Conn) { close(v.done) }))
	switch {
	case c.Token != "":
		opts = append(opts, nats.Token(c.Token))
	case c.User != "" || c.Password != "":
		opts = append(opts, nats.UserInfo(c.User, c.Password))
	}
	nc, err := node.Login(opts...)
	switch {
	case errors.Is(err, nats.ErrAuthorization):
		return nil, page.ErrCredentials
	case errors.Is(err, broker.ErrLogin):
		return nil, errors.New(errorText(err))
	case err != nil:
		return nil, fmt.Errorf("the NATS server does not answer: %w", err)
	}
	v.conn.nc = nc
	if err := v.conn.checkInbox(ctx, flags); err != nil {
		v.Close()
		if errors.Is(err, nats.ErrPermissionViolation) {
			return nil, errInbox
		}
		return nil, err
	}
	return v, nil
}
