package broker

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/nats-io/nats-server/v2/server"
)

// NATSOptions configures a bare nats-server: one without Cantus, to measure
// Cantus against. The zero value listens on a free loopback port.
type NATSOptions struct {
	// Listen is the host:port for clients; port 0 takes a free one. Default
	// "127.0.0.1:0".
	Listen string
	// ConfigFile is a nats-server configuration file; the other fields go
	// before what it says.
	ConfigFile string
	// JetStream turns JetStream on, with its data in StoreDir.
	JetStream bool
	// StoreDir is JetStream's directory.
	StoreDir string
	// SyncAlways syncs each write before it is acknowledged, as the setting
	// `sync_interval: always` does. Otherwise files are synced every two
	// minutes, nats-server's default.
	SyncAlways bool
}

// NATSServer is a running bare nats-server.
type NATSServer struct {
	server *server.Server
	once   sync.Once
}

// RunNATS starts a bare nats-server of the version that is linked in, and
// returns once it accepts clients. It does not log and handles no signals;
// the caller ends it with [NATSServer.Close]. ctx bounds the start only.
func RunNATS(ctx context.Context, opts NATSOptions) (*NATSServer, error) {
	conf, err := bareConfig(opts)
	if err != nil {
		return nil, err
	}
	ns, err := startServer(ctx, conf, slog.New(slog.DiscardHandler), func(*server.Server) error { return nil })
	if err != nil {
		return nil, err
	}
	bare := &NATSServer{server: ns}
	if opts.JetStream && !ns.JetStreamEnabled() {
		bare.Close()
		return nil, fmt.Errorf("%w: JetStream did not start on %s", ErrNATSNotReady, opts.StoreDir)
	}
	return bare, nil
}

func bareConfig(opts NATSOptions) (*server.Options, error) {
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
	var err error
	if conf.Host, conf.Port, err = splitAddress(listen); err != nil {
		return nil, fmt.Errorf("listen address: %w", err)
	}
	return conf, nil
}

// ClientURL is where clients connect, "nats://127.0.0.1:4222".
func (s *NATSServer) ClientURL() string { return s.server.ClientURL() }

// Close stops the server and waits until it has ended. It is idempotent.
func (s *NATSServer) Close() {
	s.once.Do(func() {
		s.server.Shutdown()
		s.server.WaitForShutdown()
	})
}
