package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

// memberVerb is the argument with which this program starts itself as a member.
const memberVerb = "member"

// startTimeout is how long a cluster may take to have a leader.
const startTimeout = time.Minute

// quota is etcd's highest recommended size of a store.
const quota = 8 << 30

// serveMember runs a member until ctx ends, and prints a line once it serves.
func serveMember(ctx context.Context, args []string, out io.Writer) error {
	f := flag.NewFlagSet(memberVerb, flag.ContinueOnError)
	name, dir := f.String("name", "", ""), f.String("dir", "", "")
	client, peer, cluster := f.String("client", "", ""), f.String("peer", "", ""), f.String("cluster", "", "")
	if err := f.Parse(args); err != nil {
		return err
	}
	c := embed.NewConfig()
	c.Name, c.Dir, c.InitialCluster, c.LogLevel = *name, *dir, *cluster, "error"
	c.LogOutputs = []string{"stderr"}
	c.ListenClientUrls, c.AdvertiseClientUrls = address(*client), address(*client)
	c.ListenPeerUrls, c.AdvertisePeerUrls = address(*peer), address(*peer)
	c.QuotaBackendBytes = quota
	e, err := embed.StartEtcd(c)
	if err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	defer e.Close()
	select {
	case <-e.Server.ReadyNotify():
	case err := <-e.Err():
		return fmt.Errorf("etcd: %w", err)
	case <-ctx.Done():
		return nil
	}
	fmt.Fprintln(out, "etcd: ready")
	select {
	case err := <-e.Err():
		return fmt.Errorf("etcd: %w", err)
	case <-ctx.Done():
		return nil
	}
}

func address(hostPort string) []url.URL { return []url.URL{{Scheme: "http", Host: hostPort}} }

// member is an etcd process.
type member struct {
	name   string
	client string // where clients connect
	cmd    *exec.Cmd
	stderr lastOutput
	ready  chan struct{}
	ended  chan struct{}
	err    error // of the process, once it has ended
}

// cluster is the members, and the directory of their data.
type cluster struct {
	members []*member
	dir     string
}

// startCluster starts n members in dir and returns once all serve.
func startCluster(ctx context.Context, n int, dir string) (*cluster, error) {
	addrs, err := freeAddrs(2 * n)
	if err != nil {
		return nil, err
	}
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("m%d=http://%s", i+1, addrs[n+i]))
	}
	c := &cluster{dir: dir}
	for i := range n {
		m, err := launch(fmt.Sprint("m", i+1), dir, addrs[i], addrs[n+i], strings.Join(names, ","))
		if err != nil {
			c.stop()
			return nil, err
		}
		c.members = append(c.members, m)
	}
	timeout := time.After(startTimeout)
	for _, m := range c.members {
		select {
		case <-m.ready:
			continue
		case <-m.ended:
			err = fmt.Errorf("etcd %s ended before it was ready (%w): %s", m.name, m.err, m.stderr.String())
		case <-timeout:
			err = fmt.Errorf("etcd %s was not ready after %v: %s", m.name, startTimeout, m.stderr.String())
		case <-ctx.Done():
			err = ctx.Err()
		}
		c.stop()
		return nil, err
	}
	return c, nil
}

func launch(name, dir, client, peer, cluster string) (*member, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own executable: %w", err)
	}
	m := &member{name: name, client: client, ready: make(chan struct{}), ended: make(chan struct{})}
	m.cmd = exec.Command(self, memberVerb, "--name", name, "--dir", filepath.Join(dir, name),
		"--client", client, "--peer", peer, "--cluster", cluster)
	m.cmd.Stderr = &m.stderr
	endWithParent(m.cmd)
	out, err := m.cmd.StdoutPipe()
	if err == nil {
		err = m.cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("start etcd %s: %w", name, err)
	}
	go func() {
		for lines, found := bufio.NewScanner(out), false; lines.Scan(); {
			if !found && lines.Text() == "etcd: ready" {
				found = true
				close(m.ready)
			}
		}
		m.err = m.cmd.Wait()
		close(m.ended)
	}()
	return m, nil
}

// stop kills all members.
func (c *cluster) stop() {
	for _, m := range c.members {
		_ = m.cmd.Process.Signal(syscall.SIGTERM)
	}
	for _, m := range c.members {
		select {
		case <-m.ended:
		case <-time.After(startTimeout):
			_ = m.cmd.Process.Kill()
			<-m.ended
		}
	}
}

// freeAddrs returns n loopback addresses that were free a moment ago: members
// must know each other's addresses before they start.
func freeAddrs(n int) (addrs []string, err error) {
	for range n {
		l, err1 := net.Listen("tcp", "127.0.0.1:0")
		if err1 != nil {
			return nil, fmt.Errorf("find a free port: %w", err1)
		}
		defer func() { err = errors.Join(err, l.Close()) }()
		addrs = append(addrs, l.Addr().String())
	}
	return addrs, nil
}

// lastOutput is a writer that keeps the end of what is written.
type lastOutput struct {
	mu   sync.Mutex
	text []byte
}

func (o *lastOutput) Write(p []byte) (int, error) {
	const most = 4 << 10
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text = append(o.text, p...)
	o.text = bytes.Clone(o.text[max(0, len(o.text)-most):])
	return len(p), nil
}

func (o *lastOutput) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.TrimSpace(string(o.text))
}
