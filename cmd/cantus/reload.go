package main

import (
	"errors"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/cantuslog/cantus/broker"
)

// reloadable are the flags of serve that a running node reloads.
var reloadable = []string{"nats-config", "credentials", "queue-size", "reserve", "catch-up-rate", "log-level"}

// flagValues are a node's settings, by flag.
type flagValues map[string]any

func valuesOf(flags []*kong.Flag) flagValues {
	values := flagValues{}
	for _, f := range flags {
		values[f.Name] = f.Target.Interface()
	}
	return values
}

// reload reads the configuration file and the environment again and applies the
// reloadable flags to the node. running is its current settings. If there is a
// mistake nothing changes. It returns the status for the service manager.
func (p *program) reload(node *broker.Node, running flagValues, level *slog.LevelVar, log *slog.Logger) (status string) {
	next, values, err := p.parseServe()
	was, open, certificates := node.NATSConfigDigest(), node.OpenPorts(), node.CertificateChanges()
	if err == nil {
		var opts broker.Options
		if opts, err = next.options(); err == nil {
			err = node.Reload(opts)
		}
	}
	if err != nil {
		log.Error("not reloaded: everything stays as it was", "err", err)
		return "serving with the old settings: the reload failed, and the log says why"
	}
	setLevel(level, next.LogLevel)
	var changed, restart []string
	for _, name := range slices.Sorted(maps.Keys(values)) {
		switch {
		case reflect.DeepEqual(values[name], running[name]) && (name != "nats-config" || node.NATSConfigDigest() == was):
		case slices.Contains(reloadable, name):
			running[name] = values[name]
			changed = append(changed, name)
		case name != "config":
			restart = append(restart, name)
		}
	}
	if node.CertificateChanges() > certificates {
		changed = append(changed, "certificates")
	}
	if len(changed) == 0 {
		log.Info("reloaded: nothing has changed")
	} else {
		log.Info("reloaded: changes take effect", "changed", strings.Join(changed, ","))
	}
	if now := node.OpenPorts(); now != open {
		log.Info("open: " + now)
	}
	if len(restart) > 0 {
		log.Warn("changed settings take effect at the next start", "flags", strings.Join(restart, ","))
		return "serving; some changed settings take effect at the next start, and the log names them"
	}
	return "serving"
}

// parseServe parses the command line again, with the current configuration
// file.
func (p *program) parseServe() (*serveCmd, flagValues, error) {
	g := &grammar{}
	parser, err := p.parser(g, func(int) {})
	if err != nil {
		return nil, nil, err
	}
	ctx, err := parser.Parse(spellHelp(p.args))
	if err != nil {
		return nil, nil, err
	}
	if ctx.Selected() == nil || ctx.Selected().Name != "serve" {
		return nil, nil, errors.New("the command line is not serve's")
	}
	return &g.Serve, valuesOf(ctx.Selected().Flags), nil
}

func setLevel(v *slog.LevelVar, text string) {
	var level slog.Level
	if level.UnmarshalText([]byte(text)) == nil {
		v.Set(level)
	}
}
