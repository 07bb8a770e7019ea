package main

import (
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// samples has for each flag of serve, except --config, a value that is not its
// default. FILE stands for the path of a file that exists.
var samples = map[string]string{
	"name": "n7", "cluster-name": "blue", "data": "/elsewhere", "archive": "/backup", "partitions": "9", "prefix": "bank.log",
	"listen": "127.0.0.1:7001", "http": "127.0.0.1:7002", "nats-config": "FILE", "account": "APP", "credentials": "FILE",
	"locks": "500", "msg-ids": "600", "msg-id-window": "3m", "queue-size": "8MiB", "tail-size": "9MiB", "reserve": "10MiB",
	"scrub-rate": "1MiB", "scrub-interval": "2h", "retention-interval": "90s", "index": "off",
	"log-level": "debug", "log-format": "json", "pprof": "true", "page": "off",
	"traces": "http://127.0.0.1:4318/v1/traces", "trace-ratio": "0.5",
	"cluster": "127.0.0.1:7003", "routes": "10.0.0.2:6222,10.0.0.3:6222", "raft": "127.0.0.1:7004", "raft-advertise": "n7.example:7004",
	"bootstrap": "n7,n8,n9", "replicas": "5", "standby": "true", "election-timeout": "1s", "catch-up-rate": "32MiB",
	"cluster-secret": "0123456789abcdef0123456789abcdef", "cluster-secret-file": "FILE", "insecure": "true",
}

// parseServe returns the values that serve's flags take from args, the
// environment and a file.
func parseServe(t *testing.T, args ...string) map[string]any {
	t.Helper()
	parser, err := newParser(&program{out: io.Discard, errOut: io.Discard}, func(int) { t.Error("the parser exits") })
	if err != nil {
		t.Fatal(err)
	}
	kctx, err := parser.Parse(append([]string{"serve"}, args...))
	if err != nil {
		t.Fatalf("serve %v: %v", args, err)
	}
	values := map[string]any{}
	for _, f := range kctx.Selected().Flags {
		if f.Name != "help" && f.Name != "config" {
			values[f.Name] = f.Target.Interface()
		}
	}
	return values
}

// TestEveryFlagThreeWays sets each of serve's flags on the command line, by its
// environment variable and in a file: the result is the same, and nothing else
// changes.
func TestEveryFlagThreeWays(t *testing.T) {
	dir := t.TempDir()
	there := filepath.Join(dir, "there")
	config := filepath.Join(dir, "cantus.yaml")
	if err := os.WriteFile(there, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	defaults := parseServe(t)
	for name, normal := range defaults {
		t.Run(name, func(t *testing.T) {
			value, ok := samples[name]
			if !ok {
				t.Fatal("samples has no value for it")
			}
			value = strings.ReplaceAll(value, "FILE", there)
			byFlag := parseServe(t, "--"+name+"="+value)
			if err := os.WriteFile(config, []byte(name+": "+value+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			byFile := parseServe(t, "--config", config)
			t.Setenv("CANTUS_"+strings.ToUpper(strings.ReplaceAll(name, "-", "_")), value)
			byVariable := parseServe(t)
			if reflect.DeepEqual(byFlag[name], normal) {
				t.Errorf("--%s %s changes nothing", name, value)
			}
			if !reflect.DeepEqual(byFlag, byFile) {
				t.Errorf("the flag sets\n%v\nand the file\n%v", byFlag, byFile)
			}
			if !reflect.DeepEqual(byFlag, byVariable) {
				t.Errorf("the flag sets\n%v\nand the variable\n%v", byFlag, byVariable)
			}
			byFlag[name] = normal
			if !reflect.DeepEqual(byFlag, defaults) {
				t.Errorf("--%s changes other flags too:\n%v\nwere\n%v", name, byFlag, defaults)
			}
		})
	}
}

// TestEveryFlagReachesTheNode checks that each flag, except those of logging,
// changes the options that the node is opened with.
func TestEveryFlagReachesTheNode(t *testing.T) {
	there := filepath.Join(t.TempDir(), "there")
	if err := os.WriteFile(there, []byte(samples["cluster-secret"]+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	options := func(args ...string) any {
		parser, err := newParser(&program{out: io.Discard, errOut: io.Discard}, func(int) {})
		if err != nil {
			t.Fatal(err)
		}
		kctx, err := parser.Parse(append([]string{"serve"}, args...))
		if err != nil {
			t.Fatal(err)
		}
		opts, err := kctx.Selected().Target.Addr().Interface().(*serveCmd).options()
		if err != nil {
			t.Fatal(err)
		}
		return opts
	}
	defaults := options()
	for name, value := range samples {
		if name == "data" || name == "archive" || name == "traces" || name == "page" || strings.HasPrefix(name, "log-") {
			continue
		}
		if got := options("--" + name + "=" + strings.ReplaceAll(value, "FILE", there)); reflect.DeepEqual(got, defaults) {
			t.Errorf("--%s %s: the node is opened as without it", name, value)
		}
	}
}

// FuzzConfig reads arbitrary bytes as a configuration file: it is refused, or
// each of its keys is a flag with a value that the flag takes.
func FuzzConfig(f *testing.F) {
	for _, s := range []string{
		"", "name: n7\n", "partitions: 4\nlocks: 1_000\n", "queue-size: 8MiB # eight\n", "name: [a, b]\n", "name: a\nname: b\n", "routes: [a:1, \"b:2\"]\n", "bootstrap:\n- a\n- [b]\n", "routes: []\n",
		"name: &x a\ncluster-name: *x\n", "? name\n: a\n", "name: |\n  a\n", "{name: a, http: off}", "<<: {name: a}\n", "--- \n...\n---\n", "\"na\\x6de\": a\n",
	} {
		f.Add([]byte(s))
	}
	parser, err := newParser(&program{out: io.Discard, errOut: io.Discard}, func(int) {})
	if err != nil {
		f.Fatal(err)
	}
	serve := parserCommand(parser, "serve")
	flags := configFlags(serve)
	f.Fuzz(func(t *testing.T, text []byte) {
		file := filepath.Join(t.TempDir(), "cantus.yaml")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		config, all := loadConfig(file, serve, func(*kong.Flag) bool { return false })
		for _, err := range all {
			if !strings.Contains(err.Error(), file) {
				t.Errorf("the error does not name the file: %v", err)
			}
		}
		if len(all) > 0 {
			return
		}
		for key, value := range config.values {
			flag, ok := flags[key]
			if !ok {
				t.Fatalf("%q is no flag", key)
			}
			if err := tryValue(flag, value.text); err != nil {
				t.Errorf("%s takes no %q: %v", key, value.text, err)
			}
		}
	})
}
