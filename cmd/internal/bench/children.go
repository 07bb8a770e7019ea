package bench

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/pprof"
	"syscall"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/internal/barenats"
)

// serveJetstream runs the peer's process. Its output has an address of the same
// form as a node's.
func (c *Command) serveJetstream(ctx context.Context, out io.Writer) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	peer, err := barenats.Run(ctx, barenats.Options{
		Listen: c.ServeListen, ConfigFile: c.ServeConfig,
		JetStream: true, StoreDir: c.ServeJetstream, SyncAlways: c.SyncAlways,
	})
	if err != nil {
		return err
	}
	defer peer.Close()
	fmt.Fprintln(out, "jetstream: ready", peer.ClientURL())
	<-ctx.Done()
	return nil
}

// serveNode runs a node's process if its profile is wanted. Otherwise that is
// `cantus serve`.
func (c *Command) serveNode(ctx context.Context, out io.Writer) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	node, err := broker.Open(ctx, c.ServeNode, broker.Options{
		Partitions: c.Partitions, Prefix: c.Prefix, ClientListen: c.ServeListen,
	})
	if err != nil {
		return err
	}
	file, err := os.Create(c.Profile)
	if err == nil {
		err = pprof.StartCPUProfile(file)
	}
	if err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	fmt.Fprintln(out, "cantus: ready", node.ClientURL())
	select {
	case <-ctx.Done():
	case <-node.Done():
	}
	pprof.StopCPUProfile()
	if err := file.Close(); err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	return node.Close()
}
