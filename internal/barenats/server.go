// Package barenats runs a nats-server without Cantus, for the benchmark's
// comparison and for tests of clients.
package barenats

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// ErrNotReady is returned if the server does not accept clients, for example
// because its port is taken, or because the context ended first.
var ErrNotReady = errors.New("barenats: server not ready")

// startTimeout bounds how long Run waits for the server to accept clients.
const startTimeout = 30 * time.Second

// Options configures a server. The zero value listens on a free loopback port.
type Options struct {
	// Listen is the host:port for clients; port 0 means any free port. Default
	// "127.0.0.1:0", or the address in ConfigFile.
	Listen string
	// ConfigFile is a nats-server configuration file. The other fields take
	// precedence over it.
	ConfigFile string
	// JetStream enables JetStream.
	JetStream bool
	// StoreDir is JetStream's data directory.
	StoreDir string
	// SyncAlways syncs each write before it is acknowledged, as the setting
	// `sync_interval: always` does. Otherwise files are synced every two
	// minutes, nats-server's default.
	SyncAlways bool
}

// Server is a running nats-server.
type Server struct {
	server *server.Server
	once   sync.Once
}

// Run starts a nats-server in this process, and returns when it accepts
// clients. The server does not log and does not handle signals. The caller
// stops it with [Server.Close]. ctx only bounds the start.
func Run(ctx context.Context, opts Options) (*Server, error) {
	conf, err := configure(opts)
	if err != nil {
		return nil, err
	}
	ns, err := server.NewServer(conf)
	if err != nil {
		return nil, fmt.Errorf("NATS server: %w", err)
	}
	fatal := make(fatalLog, 1)
	ns.SetLoggerV2(fatal, false, false, false)
	s := &Server{server: ns}
	ns.Start()
	if err := await(ctx, ns, fatal); err != nil {
		s.Close()
		return nil, err
	}
	if opts.JetStream && !ns.JetStreamEnabled() {
		s.Close()
		return nil, fmt.Errorf("%w: JetStream did not start on %s", ErrNotReady, opts.StoreDir)
	}
	return s, nil
}

// await returns nil when the server accepts clients.
func await(ctx context.Context, ns *server.Server, fatal fatalLog) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for !ns.ReadyForConnections(50 * time.Millisecond) {
		select {
		case text := <-fatal:
			return fmt.Errorf("%w: %s", ErrNotReady, text)
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrNotReady, ctx.Err())
		default:
		}
	}
	return nil
}

func configure(opts Options) (*server.Options, error) {
	conf := &server.Options{}
	if opts.ConfigFile != "" {
		var err error
		if conf, err = server.ProcessConfigFile(opts.ConfigFile); err != nil {
			return nil, fmt.Errorf("NATS configuration %s: %w", opts.ConfigFile, err)
		}
	}
	conf.NoSigs = true
	if opts.JetStream {
		conf.JetStream, conf.StoreDir, conf.SyncAlways = true, opts.StoreDir, opts.SyncAlways
	}
	listen := opts.Listen
	if listen == "" {
		if opts.ConfigFile != "" {
			return conf, nil
		}
		listen = "127.0.0.1:0"
	}
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return nil, fmt.Errorf("listen address: %q is not host:port, such as 127.0.0.1:4222", listen)
	}
	conf.Host = host
	if conf.Port, err = strconv.Atoi(port); err != nil || conf.Port < 0 || conf.Port > 65535 {
		return nil, fmt.Errorf("listen address: %q: the port is a number from 0 (any free one) to 65535", listen)
	}
	if conf.Port == 0 {
		conf.Port = server.RANDOM_PORT
	}
	return conf, nil
}

// ClientURL returns the URL for clients, such as "nats://127.0.0.1:4222".
func (s *Server) ClientURL() string { return s.server.ClientURL() }

// Close stops the server and waits until it has stopped. It is idempotent.
func (s *Server) Close() {
	s.once.Do(func() {
		s.server.Shutdown()
		s.server.WaitForShutdown()
	})
}

// fatalLog is a server's logger that keeps the first fatal message.
type fatalLog chan string

func (l fatalLog) Fatalf(format string, v ...any) {
	select {
	case l <- fmt.Sprintf(format, v...):
	default:
	}
}

func (fatalLog) Noticef(string, ...any) {}
func (fatalLog) Warnf(string, ...any)   {}
func (fatalLog) Errorf(string, ...any)  {}
func (fatalLog) Debugf(string, ...any)  {}
func (fatalLog) Tracef(string, ...any)  {}
