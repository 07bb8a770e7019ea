package raftstore

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/hashicorp/raft"

	"github.com/cantuslog/cantus/wal"
	"github.com/cantuslog/cantus/wal/journal/journaltest"
)

// bytesConn is a connection that delivers bytes, and drops what is written.
type bytesConn struct {
	net.Conn
	in io.Reader
}

func (c bytesConn) Read(p []byte) (int, error)      { return c.in.Read(p) }
func (c bytesConn) Write(p []byte) (int, error)     { return len(p), nil }
func (c bytesConn) Close() error                    { return nil }
func (c bytesConn) SetReadDeadline(time.Time) error { return nil }
func (c bytesConn) RemoteAddr() net.Addr            { return nodeAddr("n2") }

// oneConn is a stream layer that accepts one connection.
type oneConn struct{ conns chan net.Conn }

func (s oneConn) Accept() (net.Conn, error) {
	if c, ok := <-s.conns; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (s oneConn) Close() error   { return nil }
func (s oneConn) Addr() net.Addr { return nodeAddr("n1") }
func (s oneConn) Dial(raft.ServerAddress, time.Duration) (net.Conn, error) {
	return nil, net.ErrClosed
}

// request encodes a request to raft as a peer sends it.
func request(f *testing.F, kind byte, q any) []byte {
	f.Helper()
	var b bytes.Buffer
	b.WriteByte(kind)
	if err := codec.NewEncoder(&b, &codec.MsgpackHandle{}).Encode(q); err != nil {
		f.Fatal(err)
	}
	return b.Bytes()
}

// maxDecoded bounds what decoding a request may allocate, beyond its size.
const maxDecoded = 64 << 20

// FuzzRaftRequests reads what a member sends to raft. Whatever passes the
// filter is something that raft can handle: it panics on some of the rest.
func FuzzRaftRequests(f *testing.F) {
	const appendEntries, requestVote, installSnapshot, timeoutNow, preVote = 0, 1, 2, 3, 4 // see raft's net_transport.go
	head := raft.RPCHeader{ProtocolVersion: 3, ID: []byte("n2"), Addr: []byte("n2")}
	config := raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{{ID: "n1", Address: "n1"}}})
	f.Add(request(f, appendEntries, raft.AppendEntriesRequest{RPCHeader: head, Term: 2, PrevLogEntry: 1, PrevLogTerm: 1, LeaderCommitIndex: 3, Entries: []*raft.Log{
		{Index: 2, Term: 2, Type: raft.LogCommand, Data: []byte("x")}, {Index: 3, Term: 2, Type: raft.LogConfiguration, Data: config},
	}}))
	f.Add(request(f, appendEntries, raft.AppendEntriesRequest{RPCHeader: head, Term: 2, Entries: []*raft.Log{nil}}))
	f.Add(request(f, appendEntries, raft.AppendEntriesRequest{RPCHeader: head, Term: 2, Entries: []*raft.Log{{Index: 7, Type: raft.LogConfiguration, Data: []byte{1}}}}))
	f.Add(request(f, appendEntries, raft.AppendEntriesRequest{RPCHeader: head, Term: 2, Entries: []*raft.Log{{Index: 1, Term: 1, Type: 77}}}))
	f.Add(request(f, requestVote, raft.RequestVoteRequest{RPCHeader: head, Term: 1 << 60}))
	f.Add(request(f, preVote, raft.RequestPreVoteRequest{RPCHeader: head, Term: 3}))
	f.Add(request(f, timeoutNow, raft.TimeoutNowRequest{RPCHeader: head}))
	f.Add(append(request(f, installSnapshot, raft.InstallSnapshotRequest{RPCHeader: head, Term: 2, Size: 3}), "abc"...))
	f.Add(request(f, installSnapshot, raft.InstallSnapshotRequest{RPCHeader: head, Term: 2, Size: -1}))
	f.Add([]byte{0, 0x81, 0xa7, 'E', 'n', 't', 'r', 'i', 'e', 's', 0xdd, 0xff, 0xff, 0xff, 0xff, 0xc0})
	f.Add([]byte{1, 0x81, 0xa9, 'C', 'a', 'n', 'd', 'i', 'd', 'a', 't', 'e', 0xc6, 0xff, 0xff, 0xff, 0xf0})
	log := fuzzLog(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		conns := oneConn{make(chan net.Conn, 1)}
		in := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{Stream: conns, Timeout: time.Minute, Logger: hclog.NewNullLogger()})
		ctx, cancel := context.WithCancel(context.Background())
		filter := newRPCFilter(ctx, in.Consumer(), log, nil, func(int) bool { return false }, nil)
		ended := make(chan struct{})
		conns.conns <- closeNotifier{bytesConn{in: bytes.NewReader(b)}, ended}
		for open := true; open; {
			select {
			case rpc := <-filter.out:
				checkForRaft(t, rpc.Command)
				rpc.Respond(nil, errors.New("no"))
			case <-ended:
				open = false
			}
		}
		cancel()
		filter.wait()
		close(conns.conns)
		_ = in.Close()
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > maxDecoded+1000*uint64(len(b)) {
			t.Fatalf("%d bytes took %d of memory", len(b), n)
		}
	})
}

// closeNotifier closes a channel when the connection is closed.
type closeNotifier struct {
	net.Conn
	closed chan struct{}
}

func (c closeNotifier) Close() error {
	close(c.closed)
	return c.Conn.Close()
}

// checkForRaft checks that raft can handle a request.
func checkForRaft(t *testing.T, command any) {
	t.Helper()
	if term := requestTerm(command); implausibleTerm(0, term) {
		t.Fatalf("term %d", term)
	}
	q, ok := command.(*raft.AppendEntriesRequest)
	if !ok {
		if _, snapshot := command.(*raft.InstallSnapshotRequest); snapshot {
			t.Fatal("raft is to install a snapshot")
		}
		return
	}
	for i, l := range q.Entries {
		if l == nil || l.Index == 0 || l.Index != q.Entries[0].Index+uint64(i) || l.Term > q.Term {
			t.Fatalf("entry %d is %+v", i, l)
		}
		switch l.Type {
		case raft.LogCommand, raft.LogNoop, raft.LogBarrier:
		case raft.LogConfiguration:
			raft.DecodeConfiguration(l.Data) // panics
		default:
			t.Fatalf("entry %d is of type %d", i, l.Type)
		}
	}
	if q.LeaderCommitIndex > lastIndexAfter(q) {
		t.Fatalf("commits %d of %d", q.LeaderCommitIndex, lastIndexAfter(q))
	}
}

// fuzzLog returns an empty log, in a store whose journal is in memory.
func fuzzLog(f *testing.F) *wal.Log {
	f.Helper()
	s, err := wal.Open(f.TempDir(), wal.Options{Identity: wal.Identity{Cluster: "c", Node: "n1", Partitions: 1}, FS: journaltest.New(1)})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = s.Close() })
	return s.Log(0)
}

// fetchMessage encodes a message of a fetch.
func fetchMessage(kind byte, body []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(body))), body...)
}

// FuzzFetch fetches a log from a member that sends anything. The log is either
// as the member's snapshot says, or the fetch is still to be done; and the
// member decides nothing about this replica's term and vote.
func FuzzFetch(f *testing.F) {
	header := func(h fetchHeader, snap storedSnapshot) []byte {
		state, err := json.Marshal(snap)
		if err != nil {
			f.Fatal(err)
		}
		if h.Metas == nil {
			h.Metas = map[string][]byte{}
		}
		h.Metas[metaSnapshot] = state
		b, err := json.Marshal(h)
		if err != nil {
			f.Fatal(err)
		}
		return fetchMessage(msgHeader, b)
	}
	entry := func(index, term uint64) []byte {
		return fetchMessage(msgEntry, append(encodeFetched(&wal.Entry{Index: index, Term: term}), "data"...))
	}
	good := bytes.Join([][]byte{
		header(fetchHeader{First: 3, Voids: []uint64{4}}, storedSnapshot{Index: 4, Term: 2}), entry(3, 1), entry(4, 2), fetchMessage(msgEnd, nil),
	}, nil)
	f.Add(good)
	f.Add(good[:len(good)-9])
	for _, name := range []string{keyTerm, "LastVoteCand"} {
		metas := map[string][]byte{stablePrefix + name: {0, 0, 0, 0, 0, 0, 0, 1}}
		f.Add(slices.Concat(header(fetchHeader{First: 1, Metas: metas}, storedSnapshot{Index: 1, Term: 1}), entry(1, 1), fetchMessage(msgEnd, nil)))
	}
	f.Add(append(header(fetchHeader{First: 1}, storedSnapshot{Index: 9, Term: 1 << 63}), entry(1, 1)...))
	f.Add(append(header(fetchHeader{First: 5}, storedSnapshot{Index: 5, Term: 9}), entry(5, 1)...))
	f.Add(fetchMessage(msgError, []byte("no")))
	f.Add([]byte{msgHeader, 0xff, 0xff, 0xff, 0xff})
	log := fuzzLog(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		vote := []byte("n1")
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(Reset(log))
		must(log.SetMeta(
			wal.Meta{Name: stablePrefix + keyTerm, Value: binary.BigEndian.AppendUint64(nil, 5)},
			wal.Meta{Name: stablePrefix + "LastVoteCand", Value: vote},
			wal.Meta{Name: metaFetching},
		))
		state, err := beginFetch(log)
		must(err)
		conn := bytesConn{in: bytes.NewReader(b)}
		fetch := fetcher{log: log, state: state, conn: &fetchConn{Conn: conn, r: bufio.NewReader(conn), w: bufio.NewWriter(conn)}}
		err = fetch.run()
		if term := storedTerm(log); term < 5 || term > 5 && term != fetch.snapshot.Term || implausibleTerm(5, term) {
			t.Fatalf("the term became %d", term)
		}
		if !bytes.Equal(log.Meta(stablePrefix+"LastVoteCand"), vote) {
			t.Fatal("the vote is another's")
		}
		if err != nil {
			if !Fetching(log) {
				t.Fatalf("%v, yet the log counts as fetched", err)
			}
			return
		}
		for name := range log.Metas("") {
			if strings.HasPrefix(name, stablePrefix) && name != stablePrefix+keyTerm && name != stablePrefix+"LastVoteCand" {
				t.Fatalf("the other replica set %q", name)
			}
		}
		if last := log.LastIndex(); Fetching(log) || last != fetch.snapshot.Index || log.FirstIndex() != fetch.header.First {
			t.Fatalf("the log has entries %d to %d, the snapshot is at %d", log.FirstIndex(), last, fetch.snapshot.Index)
		}
	})
}

// FuzzFetchRequest serves a fetch for which a member asks by anything.
func FuzzFetchRequest(f *testing.F) {
	f.Add(fetchMessage(msgRequest, binary.BigEndian.AppendUint64(nil, 1)))
	f.Add(fetchMessage(msgRequest, []byte{1}))
	f.Add(fetchMessage(msgEnd, nil))
	f.Add([]byte{msgRequest, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		conn := bytesConn{in: bytes.NewReader(b)}
		sent, err := (&endpoint{}).sendLog(&fetchConn{Conn: conn, r: bufio.NewReader(conn), w: bufio.NewWriter(conn)})
		if sent != 0 || err == nil { // the group is not open
			t.Fatalf("%d entries were sent, %v", sent, err)
		}
	})
}

// FuzzStableState reads the small state of a log: the term, the vote, the
// snapshot and the state of a fetch, from a directory or from another replica.
func FuzzStableState(f *testing.F) {
	f.Add(metaSnapshot, []byte(`{"index":3,"term":2,"config":{"Servers":[{"ID":"n1"}]},"state":"AA=="}`))
	f.Add(metaFetching, []byte(`{"acked_index":3,"cut":true}`))
	f.Add(stablePrefix+keyTerm, []byte{1, 2})
	f.Add(stablePrefix+keyTerm, []byte("12345678"))
	log := fuzzLog(f)
	f.Fuzz(func(t *testing.T, name string, value []byte) {
		switch name {
		case metaSnapshot, metaFetching, stablePrefix + keyTerm:
		default:
			name = metaSnapshot
		}
		if err := log.SetMeta(wal.Meta{Name: name, Value: append([]byte{}, value...)}); err != nil {
			t.Fatal(err)
		}
		snapshots := snapshotStore{log}
		_, err := snapshots.load()
		_, listErr := snapshots.List()
		_, fetchErr := loadFetchState(log)
		for _, err := range []error{err, listErr, fetchErr} {
			if err != nil && !errors.Is(err, wal.ErrDamaged) {
				t.Fatal(err)
			}
		}
		s := &logStore{truncating: make(chan struct{}, 1), log: log}
		if n, err := s.GetUint64([]byte(keyTerm)); err != nil || n != storedTerm(log) {
			t.Fatalf("term %d, %v", n, err)
		}
		if err := log.SetMeta(wal.Meta{Name: name}); err != nil {
			t.Fatal(err)
		}
	})
}
