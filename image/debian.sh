# Debian's packages from wherever this machine itself gets them, without installing them. Sourced by image/build and tools/setup.
# The caller sets: suite (trixie …), cache (a directory). shellcheck shell=bash

# Writes $cache/apt: the sources and settings that the tools tree and the image are made with.
# `apt-get indextargets` reads every form of sources file there is, so we need not.
write_apt_sources() {
  local main='' security='' keyring=/usr/share/keyrings/debian-archive-keyring.gpg uri release
  if [ -n "${GATEHOUSE_DEBIAN_MIRROR:-}" ]; then
    main=${GATEHOUSE_DEBIAN_MIRROR%/}
    security=${GATEHOUSE_DEBIAN_SECURITY_MIRROR:-}
  else
    local targets
    targets=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' | sort -u)
    while read -r uri release; do
      # A list of mirrors on this machine: the sandbox cannot see the file, so take the first entry.
      case $uri in mirror+file:*) uri=$(awk '!/^#/ && NF { print $1; exit }' "${uri#mirror+file:}") ;; esac
      case $release in
        bookworm | trixie | forky | stable | oldstable) [ -n "$main" ] || main=${uri%/} ;;
        bookworm-security | trixie-security | forky-security | stable-security) [ -n "$security" ] || security=${uri%/} ;;
      esac
    done <<<"$targets"
  fi
  if [ -z "$main" ]; then
    echo "apt on this machine has no Debian source to build the image from: set GATEHOUSE_DEBIAN_MIRROR to a Debian mirror's address"
    return 1
  fi
  if [ ! -r "$keyring" ]; then
    echo "$keyring is missing, so Debian's packages cannot be verified: install the package debian-archive-keyring"
    return 1
  fi

  local tree=$cache/apt.new
  rm -rf "$tree"
  install -d -m 0755 "$tree/etc/apt/sources.list.d" "$tree/etc/apt/apt.conf.d"
  # The name mkosi.sources is mkosi's own: it then adds none of its defaults (a debug suite that many mirrors lack).
  {
    printf 'Types: deb\nURIs: %s\nSuites: %s %s-updates\nComponents: main non-free-firmware\nSigned-By: %s\n' \
      "$main" "$suite" "$suite" "$keyring"
    [ -z "$security" ] || printf '\nTypes: deb\nURIs: %s\nSuites: %s-security\nComponents: main non-free-firmware\nSigned-By: %s\n' \
      "$security" "$suite" "$keyring"
  } >"$tree/etc/apt/sources.list.d/mkosi.sources"
  # The machine's way out to the mirror: proxies, client certificates, own authorities, passwords.
  apt-config dump | grep -E '^Acquire::(ftp|https?)::[^"]' >"$tree/etc/apt/apt.conf.d/50machine" || true
  local scheme var
  for scheme in http https; do
    var=${scheme}_proxy
    [ -z "${!var:-}" ] || printf 'Acquire::%s::Proxy "%s";\n' "$scheme" "${!var}" >>"$tree/etc/apt/apt.conf.d/50machine"
  done
  if [ -e /etc/apt/auth.conf ]; then install -m 0600 /etc/apt/auth.conf "$tree/etc/apt/auth.conf"; fi
  if [ -d /etc/apt/auth.conf.d ]; then cp -a /etc/apt/auth.conf.d "$tree/etc/apt/"; fi
  # Unchanged, it keeps its age, and mkosi its cache.
  if [ -d "$cache/apt" ] && diff -r "$tree" "$cache/apt" >/dev/null; then rm -rf "$tree"; else rm -rf "$cache/apt"; mv "$tree" "$cache/apt"; fi
}

# Unpacks a Debian package of $suite, without installing it: fetch_deb <package> <directory>
fetch_deb() {
  local package=$1 into=$2 lists=$cache/lists
  mkdir -p "$lists/state/lists/partial" "$lists/cache/archives/partial" "$lists/debs"
  local apt_options=(-o "Dir::Etc::sourcelist=$cache/apt/etc/apt/sources.list.d/mkosi.sources" -o Dir::Etc::sourceparts=-
    -o "Dir::State=$lists/state" -o "Dir::Cache=$lists/cache" -o APT::Sandbox::User=root -o Acquire::Languages=none
    -o Dir::State::status=/dev/null -o "APT::Architecture=$(dpkg --print-architecture)")
  apt-get "${apt_options[@]}" update
  rm -f "$lists/debs/${package}_"*.deb
  (cd "$lists/debs" && apt-get "${apt_options[@]}" download "$package")
  rm -rf "$into.new"
  dpkg-deb -x "$lists/debs/${package}_"*.deb "$into.new"
  rm -rf "$into" "$lists/debs/${package}_"*.deb
  mv "$into.new" "$into"
}
