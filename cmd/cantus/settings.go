package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"github.com/cantuslog/cantus/broker"
)

// mistakes are what is wrong with a configuration: all that was found.
type mistakes []error

func (all mistakes) Error() string {
	var texts []string
	for _, err := range all {
		texts = append(texts, err.Error())
	}
	return strings.Join(texts, "; ")
}

// err returns the mistakes as an error of the program, nil if there are none.
func (all mistakes) err() error {
	if len(all) == 0 {
		return nil
	}
	return &failure{exitUsage, all}
}

// readSettings reads the environment and the configuration file, and makes
// ctx's flags take their values from it. Its error has every mistake in them. A
// mistake on the command line is not among them: kong reports it before. file
// is the configuration file, "" for the one of --config.
func readSettings(ctx *kong.Context, file string) (config configFile, err error) {
	given := givenFlags(ctx)
	for f := range given {
		if f.Name == "help" {
			return config, nil // kong answers it after this
		}
	}
	all := checkVariables(ctx)
	for _, f := range ctx.Selected().Flags {
		if f.Name == "config" && file == "" {
			file, _ = ctx.FlagValue(f).(string)
			if env := variableOf(f); env != "" && !given[f] {
				file = os.Getenv(env)
			}
		}
		if env := variableOf(f); env != "" {
			value := os.Getenv(env)
			if err := checkSetting(f, value, given[f]); err != nil {
				all = append(all, fmt.Errorf("--%s: %w (from %s=%q)", f.Name, err, env, value))
			}
		}
	}
	if file != "" {
		var wrong mistakes
		config, wrong = loadConfig(kong.ExpandPath(file), ctx.Selected(), func(f *kong.Flag) bool { return given[f] || variableOf(f) != "" })
		all = append(all, wrong...)
		ctx.AddResolver(config)
	}
	return config, all.err()
}

// givenFlags returns the flags on the command line.
func givenFlags(ctx *kong.Context) map[*kong.Flag]bool {
	given := map[*kong.Flag]bool{}
	for _, at := range ctx.Path {
		if at.Flag != nil && !at.Resolved {
			given[at.Flag] = true
		}
	}
	return given
}

// rangedFlags maps the flags of serve whose ranges the broker knows to the
// fields of its options.
var rangedFlags = map[string]string{
	"partitions": "Partitions", "locks": "MaxLocks", "msg-ids": "MaxMsgIDs", "msg-id-window": "MsgIDWindow",
	"queue-size": "QueueBytes", "tail-size": "CacheBytes", "reserve": "MinFreeBytes", "election-timeout": "ElectionTimeout",
	"catch-up-rate": "CatchUpRate", "scrub-rate": "ScrubRate", "scrub-interval": "ScrubInterval", "retention-interval": "RetentionInterval",
}

// rangeOf returns the range of a flag of serve, false if it has none.
func rangeOf(name string) (broker.Range, bool) {
	all := broker.Ranges()
	i := slices.IndexFunc(all, func(r broker.Range) bool { return r.Option == rangedFlags[name] })
	if i < 0 {
		return broker.Range{}, false
	}
	return all[i], true
}

// checkRange returns an error for a value that the node would refuse.
func checkRange(name string, v reflect.Value) error {
	r, ok := rangeOf(name)
	if !ok || v.Int() >= r.Least && v.Int() <= r.Most || name == "scrub-rate" && v.Int() < 0 ||
		name == "msg-id-window" && (v.Int() == 0 || v.Int() == int64(broker.WholeLog)) {
		return nil
	}
	show := func(n int64) string { return settingText(reflect.ValueOf(n).Convert(v.Type())) }
	return fmt.Errorf("%s is out of its range, %s to %s", settingText(v), show(r.Least), show(r.Most))
}

// settingText returns the value of a flag of serve as a configuration file has
// it, "" if it is empty.
func settingText(v reflect.Value) string {
	switch value := v.Interface().(type) {
	case byteSize:
		return sizeText(int64(value))
	case scrubRate:
		if value < 0 {
			return "off"
		}
		return sizeText(int64(value))
	case duration:
		return durationText(time.Duration(value))
	case idWindow:
		switch time.Duration(value) {
		case 0:
			return ""
		case broker.WholeLog:
			return "log"
		}
		return durationText(time.Duration(value))
	case optionalAddr:
		if value == "" {
			return "off"
		}
	case partitionCount:
		if value == 0 {
			return ""
		}
	}
	switch v.Kind() {
	case reflect.String:
		return yamlText(v.String())
	case reflect.Slice:
		var texts []string
		for i := range v.Len() {
			texts = append(texts, yamlText(v.Index(i).String()))
		}
		if len(texts) > 0 {
			return "[" + strings.Join(texts, ", ") + "]"
		}
		return ""
	}
	return fmt.Sprint(v.Interface())
}

// sizeText returns a number of bytes in the largest unit that divides it.
func sizeText(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	i := 0
	for i < len(units)-1 && n > 0 && n%1024 == 0 {
		n, i = n/1024, i+1
	}
	return strconv.FormatInt(n, 10) + units[i]
}

// durationText returns a duration without minutes and seconds that are 0.
func durationText(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// plainYAML matches texts that YAML takes as they are.
var plainYAML = regexp.MustCompile(`^[A-Za-z0-9_./][A-Za-z0-9_./:@%+=?&-]*$`)

// yamlText returns a text as a value in YAML.
func yamlText(s string) string {
	if s == "" || plainYAML.MatchString(s) && !strings.HasSuffix(s, ":") && !strings.EqualFold(s, "null") {
		return s
	}
	return strconv.Quote(s)
}

// refusals returns what serve refuses of its settings, although each by itself
// is possible: what they say together, and what the files say that they name.
func (c *serveFlags) refusals(ctx context.Context) mistakes {
	var all mistakes
	opts, err := c.options()
	if err != nil {
		all = append(all, err)
		opts.ClusterSecret = strings.Repeat("?", 32) // one was meant
	}
	all = append(all, broker.Check(c.Data, opts)...)
	if c.TraceRatio > 0 && c.Traces == "" {
		all = append(all, errors.New("--trace-ratio begins traces, and they go nowhere: name a collector with --traces"))
	}
	if err := c.checkPage(); err != nil {
		all = append(all, err)
	}
	if c.Archive == "" {
		return all
	}
	a, err := openArchive(ctx, c.Archive, slog.New(slog.DiscardHandler))
	if err != nil {
		return append(all, err)
	}
	if err := a.Close(); err != nil {
		return append(all, fmt.Errorf("--archive: %w", err))
	}
	return all
}

// expiresSoon is how long before a certificate expires it is warned of.
const expiresSoon = 14 * 24 * time.Hour

// expiring returns a text for each certificate that has expired by now, or will
// soon.
func (c *serveFlags) expiring(now time.Time) (all []string) {
	opts, err := c.options()
	if err != nil {
		return nil // it is refused
	}
	expiry := broker.CertificateExpiry(c.Data, opts)
	for _, port := range slices.Sorted(maps.Keys(expiry)) {
		at := expiry[port]
		text := "the certificate of the port %q expires within two weeks, at %s: put a new one in its files before that"
		if !at.After(now) {
			text = "the certificate of the port %q has expired, at %s: others refuse connections to the port until there is a new one in its files"
		}
		if at.Before(now.Add(expiresSoon)) {
			all = append(all, fmt.Sprintf(text, port, at.UTC().Format(time.RFC3339)))
		}
	}
	return all
}

// readable returns a warning for each file with a secret that everybody on the
// machine can read.
func (c *serveFlags) readable() (all []string) {
	files := []struct{ what, name string }{{"--cluster-secret-file", c.SecretFile}, {"--credentials", c.Credentials}}
	if _, ok := c.file.values["cluster-secret"]; ok {
		files = append(files, struct{ what, name string }{"--config", c.file.name})
	}
	for _, f := range files {
		info, err := os.Stat(f.name)
		if f.name == "" || err != nil || info.Mode().Perm()&0o004 == 0 || runtime.GOOS == "windows" {
			continue
		}
		all = append(all, fmt.Sprintf("%s %s holds a secret, and everybody on this machine can read it: chmod o-rwx %s", f.what, f.name, f.name))
	}
	return all
}
